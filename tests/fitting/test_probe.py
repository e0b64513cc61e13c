"""Dry runs against real loads of llama.cpp, at several contexts and KV types."""

import dataclasses
import json
import os
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from quantkit.core.errors import GGUFError
from quantkit.fitting.memory import MIB
from quantkit.fitting.placement import ram_alone
from quantkit.fitting.probe import buffers, kv_bytes, probe
from quantkit.fitting.settings import (
    CELLS,
    KV_TYPES,
    LONGEST,
    ContextSettings,
    FitError,
    check_settings,
)
from quantkit.fitting.subject import PlanOptions, SizedModel, open_subject
from quantkit.fitting.verdict import needs_at
from quantkit.formats.gguf.layout import lay_out
from quantkit.formats.gguf.metadata import ModelMetadata, bare_entries
from quantkit.planning.plan import outline_plan
from quantkit.planning.quants import all_quants, find_quants
from tests.building.builds import build
from tests.measured import measure
from tests.parity.cases import TRAINED
from tests.planning.large_models import MIXTRAL_8X22B, model_of

CONTEXTS = (256, 4096, 16384)


def layers_of_mixtral_8x22b(folder: Path, n_layers: int, quant: str) -> Path:
    """A GGUF of the real width, loadable in full: its weights are a hole, which reads as zeros."""
    changes = {**MIXTRAL_8X22B, "num_hidden_layers": n_layers, "max_position_embeddings": 65536}
    model = model_of("mixtral", **changes)
    plan = outline_plan(model, all_quants()[quant], has_imatrix=False)
    (file,) = lay_out(plan, ModelMetadata("layers", bare_entries(model))).files
    path = folder / file.name
    with path.open("wb") as stream:
        stream.write(file.header)
        stream.truncate(file.n_bytes)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe")


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, Path]:
    built = {
        name: build(TRAINED / name, folder / name, "q4_k_m")[0].path
        for name in ("tiny-mixtral", "tiny-mistral")
    }
    return built | {"one layer of Mixtral-8x22B": layers_of_mixtral_8x22b(folder, 1, "q4_k_m")}


def logged(file: Path, settings: ContextSettings) -> dict[str, float]:
    """MiB by part, as llama.cpp logs them when it really loads a file."""
    (found,) = buffers(file, settings, [settings.cells], dry=False)["contexts"]
    return {part: mebibytes for _, part, mebibytes in found["buffers"]}


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("name", ["tiny-mixtral", "tiny-mistral", "one layer of Mixtral-8x22B"])
def test_buffers_are_those_of_a_real_load(files: dict[str, Path], name: str, kv_type: str) -> None:
    subject = open_subject(str(files[name]))
    for context in CONTEXTS:
        settings = ContextSettings(context, kv_type=kv_type)
        found = probe(subject, settings).at(settings.cells)
        mine = {"KV": found.kv, "compute": found.compute, "output": found.output}
        real = logged(files[name], settings)
        assert {part: f"{n / MIB:.2f}" for part, n in mine.items()} == {
            part: f"{mebibytes:.2f}" for part, mebibytes in real.items()
        }


@pytest.mark.parametrize(
    "settings",
    [
        ContextSettings(1000, parallel=3),
        ContextSettings(4096, flash_attn=False),
        ContextSettings(300, kv_type="q4_0"),
    ],
)
def test_other_settings_too(files: dict[str, Path], settings: ContextSettings) -> None:
    subject = open_subject(str(files["tiny-mistral"]))
    found = probe(subject, settings).at(settings.cells)
    real = logged(files["tiny-mistral"], settings)
    assert f"{found.kv / MIB:.2f}" == f"{real['KV']:.2f}"
    assert f"{found.compute / MIB:.2f}" == f"{real['compute']:.2f}"
    assert f"{found.output / MIB:.2f}" == f"{real['output']:.2f}"


def test_the_checkpoint_is_probed_like_the_file_made_from_it(files: dict[str, Path]) -> None:
    for name in ("tiny-mixtral", "tiny-mistral"):
        settings = ContextSettings(512)
        planned = probe(open_subject(str(TRAINED / name)), settings)
        assert planned.probes == probe(open_subject(str(files[name])), settings).probes


def test_buffers_do_not_depend_on_the_encoding(folder: Path) -> None:
    """So one dry run is enough for all quants."""
    settings, seen = ContextSettings(8192), set()
    for quant in ("f32", "q8_0", "q4_k_m", "iq2_s"):
        file = layers_of_mixtral_8x22b(folder, 2, quant)
        seen.add(probe(open_subject(str(file)), settings).probes)
    assert len(seen) == 1


@cache
def mixtral_8x22b() -> SizedModel:
    return open_subject("mixtral-8x22b", PlanOptions(find_quants(["q4_k_m"])))


@pytest.mark.parametrize("flash_attn", [True, False])
def test_between_probes_the_curve_is_never_too_low(flash_attn: bool) -> None:
    sparse = probe(mixtral_8x22b(), ContextSettings(8192, flash_attn=flash_attn))
    for context in (512, 768, 3072, 12288, 40960):
        real = probe(mixtral_8x22b(), ContextSettings(context, flash_attn=flash_attn)).at(context)
        guess = sparse.at(context)
        assert guess.kv == real.kv
        assert -0.01 * MIB <= guess.compute - real.compute < 0.02 * real.compute


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_the_cache_is_counted_in_whole_blocks(kv_type: str) -> None:
    shape = mixtral_8x22b().shape
    bytes_of_32 = {"f16": 64, "q8_0": 34, "q4_0": 18}[kv_type]
    expected = 56 * 8192 * 2 * 8 * 128 // 32 * bytes_of_32
    assert kv_bytes(shape, ContextSettings(8192, kv_type=kv_type), 8192) == expected
    doubled = kv_bytes(shape, ContextSettings(8192, parallel=2, kv_type=kv_type), 8192)
    assert doubled == 2 * expected


def test_contexts_are_rounded_up_as_llama_cpp_does() -> None:
    assert [ContextSettings(n).cells for n in (1, 256, 257, 8192)] == [
        CELLS,
        CELLS,
        2 * CELLS,
        8192,
    ]


def test_what_llama_cpp_would_refuse_is_refused_first() -> None:
    shape = mixtral_8x22b().shape
    with pytest.raises(FitError, match="needs flash attention"):
        check_settings(shape, ContextSettings(512, kv_type="q8_0", flash_attn=False))
    odd = dataclasses.replace(shape, key_length=24)
    with pytest.raises(FitError, match="heads of a multiple of 32"):
        check_settings(odd, ContextSettings(512, kv_type="q4_0"))


def test_a_gguf_that_llama_cpp_refuses(files: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    data = files["tiny-mistral"].read_bytes()
    broken.write_bytes(data.replace(b"blk.0.attn_q.weight", b"blk.0.attn_Q.weight"))
    with pytest.raises(GGUFError, match=r"does not load broken.gguf.*attn_q"):
        probe(open_subject(str(broken)), ContextSettings(512))


def with_number(data: bytes, key: str, value: int) -> bytes:
    """A GGUF whose key, of 32 bits, has another value."""
    head = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 4)
    before, after = data.split(head)
    return before + head + struct.pack("<I", value) + after[4:]


@pytest.mark.parametrize("value", [0, 600, 2**32 - 1])
@pytest.mark.parametrize(
    "key",
    [
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "expert_count",
        "expert_used_count",
        "rope.dimension_count",
    ],
)
def test_absurd_numbers_are_the_file_s_fault(
    files: dict[str, Path], tmp_path: Path, key: str, value: int
) -> None:
    absurd = tmp_path / "absurd.gguf"
    data = files["tiny-mixtral"].read_bytes()
    absurd.write_bytes(with_number(data, f"llama.{key}", value))
    with pytest.raises(GGUFError, match=r"absurd\.gguf") as caught:
        probe(open_subject(str(absurd)), ContextSettings(512))
    if value == 0 and key in ("block_count", "embedding_length", "expert_used_count"):
        assert f"gives llama.{key} as 0" in str(caught.value)


def test_contexts_that_would_fill_the_memory_are_not_tried(
    files: dict[str, Path], tmp_path: Path
) -> None:
    """A dry run has memory for each token of a context, if for no weight."""
    long = tmp_path / "long.gguf"
    data = files["tiny-mistral"].read_bytes()
    long.write_bytes(with_number(data, "llama.context_length", 2**31 - 1))
    subject = open_subject(str(long))
    assert probe(subject, ContextSettings(512)).longest == LONGEST
    with pytest.raises(FitError, match="than the 16,777,216 that can be tried; give a shorter"):
        check_settings(subject.shape, ContextSettings(LONGEST // 2 + 1, parallel=2))


@pytest.mark.parametrize("name", ["tiny-mixtral", "two layers of Mixtral-8x22B"])
def test_resident_memory_of_a_real_run(files: dict[str, Path], name: str, tmp_path: Path) -> None:
    """Of two layers the first computes for every token of a batch, as all but one of many do."""
    file = files.get(name) or layers_of_mixtral_8x22b(tmp_path, 2, "q2_k")
    context = 4096
    command = [sys.executable, "-m", "tests.fitting.resident", file.absolute(), context, 1, 512]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    output = subprocess.run(
        [str(word) for word in command], env=environment, check=True, capture_output=True
    ).stdout
    measured = json.loads(output)["peak"]
    subject = open_subject(str(file))
    curve = probe(subject, ContextSettings(context))
    predicted = ram_alone(needs_at(subject.variants[0], curve, context))
    assert abs(predicted - measured) <= max(0.05 * measured, 50 * MIB)


def test_a_dry_run_takes_little() -> None:
    """The largest model, 562 GB in f32."""
    code = (
        "from quantkit.fitting.subject import PlanOptions, open_subject\n"
        "from quantkit.fitting.probe import probe\n"
        "from quantkit.fitting.settings import ContextSettings\n"
        "probe(open_subject('mixtral-8x22b'), ContextSettings(65536))"
    )
    assert measure([sys.executable, "-c", code]).peak_memory < 200 * 10**6
