"""``fit`` on models of every kind: windows, latent caches, states, embeddings, encoders."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from quantkit.checkpoint.gguf import read_header
from quantkit.core.errors import GGUFError
from quantkit.fitting import shape
from quantkit.fitting.memory import MIB, weigh
from quantkit.fitting.probe import Held, Probe, buffers, probe
from quantkit.fitting.settings import ContextSettings, FitError
from quantkit.fitting.shape import Tensors, count_active, is_unquantized, layer_of, shape_of_header
from quantkit.fitting.subject import PlanOptions, open_artifact, open_subject
from quantkit.fitting.transformers import formats_of, formats_of_tensors
from quantkit.fitting.verdict import needs_at
from quantkit.planning.quants import find_quants
from quantkit.verification.machine import Memory
from tests.building.builds import build
from tests.cli.command import quantkit, refusal
from tests.fitting.kinds import KINDS, recurrent
from tests.gguf_keys import add_key
from tests.parity.cases import TRAINED

BOX = ("--gpu", "24GB", "--ram", "32GB")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {name: make(folder / f"{name}.gguf") for name, make in KINDS.items()}


def allocated(file: Path, settings: ContextSettings) -> dict[str, float]:
    """MiB by part that llama.cpp allocates when it really loads a file."""
    (told,) = buffers(file, settings, [settings.cells], dry=False)["contexts"]
    found: dict[str, float] = {}
    for _, part, mebibytes in told["buffers"]:
        found[part] = found.get(part, 0) + mebibytes
    return found


def figures(found: Probe) -> dict[str, float]:
    parts = {"KV": found.kv, "RS": found.state, "compute": found.compute, "output": found.output}
    return {part: n_bytes / MIB for part, n_bytes in parts.items()}


def differences(mine: dict[str, float], real: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Parts that differ by more than a hundredth, and by what the log's two decimals leave open."""
    return {
        part: (size, real.get(part, 0))
        for part, size in mine.items()
        if abs(size - real.get(part, 0)) > max(0.01 * size, 0.011)
    }


@pytest.mark.parametrize("name", KINDS)
def test_figures_are_those_of_a_real_load(files: dict[str, Path], name: str) -> None:
    subject = open_subject(str(files[name]))
    several = () if name == "translating" else (ContextSettings(512, parallel=3),)
    for settings in (ContextSettings(256), ContextSettings(1500), *several):
        found = probe(subject, settings).at(settings.cells)
        assert differences(figures(found), allocated(files[name], settings)) == {}, settings


@pytest.mark.parametrize("name", ["recurrent", "windowed", "latent"])
def test_figures_are_those_of_a_program_that_generates(files: dict[str, Path], name: str) -> None:
    """Weights included, of which those of layers that only draft stay in the file."""
    settings = ContextSettings(2048)
    command = [sys.executable, "-m", "tests.fitting.resident", str(files[name]), "2048", "1", "512"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, check=True, capture_output=True)
    real: dict[str, float] = {}
    for line in json.loads(done.stdout)["logged"]:
        part, mebibytes = re.findall(r"(\w+) buffer size = +([\d.]+) MiB", line)[0]
        real[part] = real.get(part, 0) + float(mebibytes)
    subject = open_artifact(files[name])
    curve = probe(subject, settings)
    weights = weigh(subject.variants[0], curve.shape, curve.unused)
    mine = {**figures(curve.at(2048)), "model": weights.total / MIB}
    assert differences(mine, real) == {}
    assert bool(curve.unused) is (name == "latent")


@pytest.mark.parametrize("name", KINDS)
def test_between_probes_the_curve_is_hardly_too_low(files: dict[str, Path], name: str) -> None:
    curve = probe(open_subject(str(files[name])), ContextSettings(512))
    contexts = [n for n in (768, 1280, 1792, 3072, 5120) if n <= curve.longest]
    real = (
        buffers(files[name], ContextSettings(512), contexts, dry=True)["contexts"]
        if contexts
        else []
    )
    for context, told in zip(contexts, real, strict=True):
        guess, there = curve.at(context), logged(told)
        assert abs(guess.kv / MIB - there["KV"]) <= 0.01 * there["KV"] + 0.011
        assert abs(guess.state / MIB - there["RS"]) <= 0.011
        assert guess.compute / MIB - there["compute"] >= -0.02


def logged(told: dict[str, Any]) -> dict[str, float]:
    """MiB of one dry context by part; caches and states are told beside their empty buffers."""
    found = {"KV": 0.0, "RS": 0.0, "compute": 0.0}
    for function, mebibytes, *_ in told["memory"]:
        found["RS" if function == "llama_memory_recurrent" else "KV"] += mebibytes
    found["compute"] += sum(size for _, part, size in told["buffers"] if part == "compute")
    return found


def test_a_cache_with_a_window_grows_until_it_is_full() -> None:
    short, long = Held(10_240, 512, (1,)), Held(25_600, 1280, (1,))
    lengths = [short.between(long, share).cells for share in (1, 1.5, 2, 2.5, 8)]
    assert lengths == [512, 768, 1024, 1280, 1280]
    assert short.between(long, 2).n_bytes == 20_480
    full = Held(25_600, 1280, (1,))
    assert full.between(long, 3) == long


def test_every_layer_has_its_own_memory(files: dict[str, Path]) -> None:
    curve = probe(open_subject(str(files["windowed"])), ContextSettings(8192))
    found = needs_at(open_subject(str(files["windowed"])).variants[0], curve, 8192).beside
    # Of 8,192 tokens the sixth layer keeps all, the others 600 and a batch, in whole cells.
    per_token = 2 * 2 * 2 * 32
    assert found.kv[5] == 8192 * per_token
    others = {kv for layer, kv in enumerate(found.kv) if layer != 5}
    assert max(others) - min(others) <= 1
    assert abs(max(others) - 1280 * per_token) < 0.01 * MIB
    assert sum(found.kv) == curve.at(8192).kv
    states = needs_at(
        open_subject(str(files["recurrent"])).variants[0],
        probe(open_subject(str(files["recurrent"])), ContextSettings(512, parallel=64)),
        512,
    ).beside
    assert states.kv == (0, 0, 0)
    # Of each of 64 sequences, 16 numbers per channel and the three columns that a convolution of
    # four still needs.
    each = 64 * 4 * 128 * (16 + 3)
    assert all(abs(state - each) < 0.01 * MIB for state in states.states)


def test_what_is_looked_up_by_token_stays_in_ram(files: dict[str, Path]) -> None:
    subject = open_artifact(files["embedding"])
    curve = probe(subject, ContextSettings(512))
    weights = weigh(subject.variants[0], curve.shape)
    assert weights.embedding == 2 * 64 * (512 + 2 + 2048)
    assert (weights.output, weights.tied_output) == (0, 0)
    tied = open_artifact(files["windowed"])
    assert weigh(tied.variants[0], tied.shape).tied_output == 2 * 64 * 512
    names = (
        "token_embd.weight", "per_layer_token_embd.weight", "blk.0.attn_q.weight",
        "per_layer_model_proj.weight", "output_norm.weight", "rope_freqs.weight",
    )  # fmt: skip
    tensors = Tensors(names, ((10, 10),) * len(names))
    variant = replace(tied.variants[0], tensors=tensors, sizes=(1000,) * len(names))
    found = weigh(variant, tied.shape)
    assert (found.embedding, found.tied_output, found.output) == (2000, 1000, 2000)
    assert (found.layers[0], found.total) == (2000, 6000)


@pytest.mark.parametrize(
    ("name", "layer", "is_expert"),
    [
        ("blk.3.ffn_down_exps.weight", 3, True),
        ("blk.3.ffn_gate_up_exps.weight", 3, True),
        ("blk.3.ffn_up_chexps.weight", 3, True),
        ("blk.3.ffn_up_exps.bias", 3, True),
        ("blk.3.ffn_up_shexp.weight", 3, False),
        ("blk.3.ffn_norm_exps.weight", 3, False),
        ("blk.3.ffn_gate_inp.weight", 3, False),
        ("blk.12.attn_q.weight", 12, False),
        ("enc.blk.1.attn_q.weight", 1, False),
        ("dec.blk.2.cross_attn_q.weight", 2, False),
        ("per_layer_token_embd.weight", None, False),
        ("v.blk.1.attn_q.weight", None, False),
    ],
)
def test_names_tell_layers_and_experts(name: str, layer: int | None, is_expert: bool) -> None:
    assert (layer_of(name), shape.is_expert(name)) == (layer, is_expert)


def test_parameters_that_a_token_uses(files: dict[str, Path]) -> None:
    subject = open_subject(str(files["latent"]))
    idle = 3 * 3 * 32 * 64 * 6  # of three layers, three matrices of six experts of eight
    assert subject.n_parameters - subject.n_active == idle
    header = read_header(files["latent"])
    tensors = subject.variants[0].tensors
    keys = {**header.metadata, "deepseek2.expert_used_count": [0, 2, 4, 8]}
    assert subject.n_parameters - count_active(files["latent"], keys, tensors) == 3 * 32 * 64 * 10
    assert shape_of_header(files["latent"], keys, header.tensors).n_experts_used == 8


def command_of(*arguments: object) -> str:
    outcome = quantkit("fit", *arguments, "-q", "q8_0", *BOX, "--json")
    assert outcome.code in (0, None), outcome
    found: dict[str, Any] = json.loads(outcome.out)
    return str(found["quants"][0]["command"])


def test_commands_are_those_for_the_kind(files: dict[str, Path]) -> None:
    assert command_of(files["windowed"]).startswith("llama-server -m ")
    embedding = command_of(files["embedding"])
    assert embedding.startswith("llama-server --embedding -m ")
    assert "-b 2048 -ub 2048" in embedding
    assert command_of(files["translating"]).startswith("llama-completion -m ")


def test_the_command_says_what_is_probed(files: dict[str, Path]) -> None:
    outcome = quantkit("fit", files["recurrent"], "-q", "f16", "--ram", "8GB")
    assert outcome.code in (0, None), outcome
    assert "Weights are exact, state, buffers probed" in outcome.out
    assert re.search(r"KiB +RAM +state", outcome.out)
    assert "everything is modelled" in outcome.out  # it is of float16


# --- refused -----------------------------------------------------------------------------------


def bare(path: Path, arch: str, **keys: Any) -> Path:
    """A GGUF of one matrix."""
    writer = GGUFWriter(path, arch)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float16))
    writer.add_tokenizer_model("none")
    for key, value in keys.items():
        name = key.replace("__", ".") if "__" in key else f"{arch}.{key}"
        add_key(writer, name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_architecture_that_llama_cpp_does_not_know(tmp_path: Path) -> None:
    file = bare(
        tmp_path / "new.gguf", "nextyear", block_count=1, embedding_length=8, context_length=512
    )
    sentence = refusal(quantkit("fit", file, *BOX))
    assert "new.gguf is of the architecture 'nextyear', which llama.cpp does not know" in sentence


@pytest.mark.parametrize(
    ("arch", "keys", "told"),
    [
        ("clip", {}, "not a model but a part of one, of type 'mmproj'"),
        ("llama", {"general__type": "adapter"}, "not a model but a part of one, of type 'adapter'"),
        ("llama", {"general__type": "imatrix"}, "an importance matrix and no model"),
        ("llama", {"block_count": 1, "embedding_length": 8}, "does not give llama.context_length"),
        (
            "llama",
            {"block_count": 0, "embedding_length": 8, "context_length": 512},
            "gives llama.block_count as 0, which no model has",
        ),
        (
            "llama",
            {"block_count": 1, "embedding_length": "8", "context_length": 512},
            "gives llama.embedding_length as '8', which is not one whole number",
        ),
    ],
)
def test_what_is_no_model(tmp_path: Path, arch: str, keys: dict[str, Any], told: str) -> None:
    file = bare(tmp_path / "odd.gguf", arch, **keys)
    with pytest.raises(GGUFError, match=re.escape(told)):
        open_subject(str(file))


def test_numbers_that_llama_cpp_aborts_on(files: dict[str, Path], tmp_path: Path) -> None:
    data = files["latent"].read_bytes()
    key = b"deepseek2.rope.dimension_count"
    at = data.index(key) + len(key) + 4
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(data[:at] + (4096).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(GGUFError, match=r"odd\.gguf has numbers .* llama\.cpp cannot work with"):
        probe(open_subject(str(odd)), ContextSettings(512))


def test_an_encoder_and_its_decoder_run_one_text_at_a_time(files: dict[str, Path]) -> None:
    sentence = refusal(quantkit("fit", files["translating"], "--parallel", "2", *BOX))
    assert "cannot run translating.gguf for several sequences" in sentence


def test_states_that_would_fill_the_memory_are_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 MiB per sequence, and llama.cpp has them even in a dry run."""
    file = recurrent(tmp_path / "wide.gguf", hidden=4096, layers=64, hollow=True)
    subject = open_subject(str(file))
    assert probe(subject, ContextSettings(256)).probes[0].state > 30 * MIB
    free = Memory(2**30, 2**20, limited=False)
    monkeypatch.setattr("quantkit.verification.hollow.memory", lambda: free)
    with pytest.raises(FitError, match=r"states of wide\.gguf.*fewer sequences with --parallel"):
        probe(subject, ContextSettings(256, parallel=64))


# --- what could be built -----------------------------------------------------------------------


def test_an_unquantized_gguf_is_planned_as_its_checkpoint_is(tmp_path: Path) -> None:
    made = build(TRAINED / "tiny-mistral", tmp_path, "bf16", "q4_k_m", check=None)
    paths = {artifact.layout.plan.quant.name: artifact.path for artifact in made}
    assert not open_subject(str(paths["q4_k_m"])).unquantized
    wishes = PlanOptions(find_quants(["bf16", "q4_k_m"]))
    found = open_subject(str(paths["bf16"]), wishes)
    source = paths["bf16"].stat().st_size
    for variant in found.variants:
        assert variant.file_bytes == paths[variant.name].stat().st_size
        assert (variant.source_bytes, variant.download_bytes) == (source, 0)
    of_checkpoint = open_subject(str(TRAINED / "tiny-mistral"), wishes)
    assert [v.size_of for v in found.variants] == [v.size_of for v in of_checkpoint.variants]
    assert (found.shape, found.n_active) == (of_checkpoint.shape, of_checkpoint.n_active)
    assert (
        probe(found, ContextSettings(512)).probes
        == probe(of_checkpoint, ContextSettings(512)).probes
    )


@pytest.mark.parametrize("name", KINDS)
def test_files_are_as_long_as_planned(files: dict[str, Path], name: str, tmp_path: Path) -> None:
    quants = ("f16", "q8_0", "q4_k_m")
    subject = open_subject(str(files[name]), PlanOptions(find_quants(quants)))
    planned = {variant.name: variant.file_bytes for variant in subject.variants}
    made = build(files[name], tmp_path, *quants, check=None)
    assert planned == {a.layout.plan.quant.name: a.path.stat().st_size for a in made}


def test_a_quantized_gguf_is_what_it_is(files: dict[str, Path], tmp_path: Path) -> None:
    [made] = build(files["latent"], tmp_path, "q8_0", check=None)
    [variant] = open_subject(str(made.path)).variants
    assert (variant.name, variant.file_bytes) == ("q8_0", made.path.stat().st_size)
    assert "a quantized GGUF is what it is" in refusal(
        quantkit("fit", made.path, "--shard-size", "1GB", *BOX)
    )
    assert "not as q4_k_m" in refusal(quantkit("fit", made.path, "-q", "q4_k_m", *BOX))


@pytest.mark.parametrize("name", ["mixtral-8x22b", "llama-3.1-8b", "mistral-nemo-12b"])
def test_formats_by_names_are_those_of_the_family(name: str) -> None:
    subject = open_subject(name, PlanOptions(find_quants(["q4_k_m"])))
    assert subject.model is not None
    exact, guessed = formats_of(subject.model), formats_of_tensors(subject.variants[0].tensors)
    for known, guess in zip(exact, guessed, strict=True):
        assert guess.name == known.name
        assert known.n_bytes is not None
        assert guess.n_bytes is not None
        assert abs(guess.n_bytes - known.n_bytes) < 0.001 * known.n_bytes


def test_formats_of_a_model_without_a_family(files: dict[str, Path]) -> None:
    assert is_unquantized(read_header(files["recurrent"]).tensors)
    found = {
        s.name: s
        for s in formats_of_tensors(open_subject(str(files["recurrent"])).variants[0].tensors)
    }
    assert {stored.label for stored in found.values() if stored.n_bytes} == {"modelled"}
    sizes = [found[name].n_bytes or 0 for name in ("fp16", "bnb-int8", "bnb-nf4")]
    assert sizes == sorted(sizes, reverse=True)
