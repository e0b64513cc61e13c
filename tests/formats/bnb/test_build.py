"""Building folders: interrupted anywhere, together with GGUF files, in little memory, refused."""

import itertools
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.building.work import prepare, prepare_export
from quantkit.core.errors import OutputError
from quantkit.formats.bnb.codec import BnbOptions
from quantkit.formats.layout import FileOptions
from quantkit.planning.quants import find_quants
from tests.building.builds import Job, at_step, build_work, check_manifest, small_slabs, start
from tests.cli.command import quantkit, refusal
from tests.formats.bnb.folders import build_folder, dequantized, stored_tensors
from tests.large_checkpoints import large_checkpoint
from tests.measured import measure
from tests.random_checkpoints import random_checkpoint

NESTED = BnbOptions(double_quant=True)
QUANTS = ("q8_0", "bnb-int8", "bnb-nf4")


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "model"
    return random_checkpoint(
        folder, "mixtral", hidden_size=64, intermediate_size=64, num_hidden_layers=1, shards=2
    )


def contents(out: Path) -> dict[str, bytes]:
    """Every file under a final name but the manifest."""
    files = (file for file in out.rglob("*") if file.is_file() and file.name != "quantkit.json")
    names = {str(file.relative_to(out)): file for file in files}
    return {
        name: file.read_bytes()
        for name, file in names.items()
        if not name.startswith(".") and ".partial" not in name
    }


@pytest.fixture(scope="module")
def reference(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("reference")
    build_work(prepare(checkpoint, find_quants(QUANTS), bnb=NESTED), out)
    return contents(out)


def test_a_crash_at_many_steps(
    checkpoint: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    """Nothing that is not whole bears a final name, and the next run ends with the same bytes."""
    work = prepare(checkpoint, find_quants(QUANTS), bnb=NESTED)

    def crash(_name: str, _args: tuple[Any, ...]) -> None:
        raise Killed

    step = crashes = 0
    while True:
        out = tmp_path / f"step-{step}"
        with small_slabs(2**11):
            try:
                with at_step(step, crash):
                    build_work(work, out, jobs=1)
            except Killed:
                crashes += 1
            else:
                break
            left = contents(out)
            assert left.items() <= reference.items()
            build_work(work, out, jobs=2)
        assert contents(out) == reference
        check_manifest(out, [layout.name for layout in work.layouts])
        assert not [file for file in out.rglob(".*") if file.is_file()]
        shutil.rmtree(out)
        step += 37 if step > 10 else 5
    assert crashes > 10


@pytest.mark.native  # for its time: another process must import torch
def test_a_kill(checkpoint: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    """A real one, in the middle of a write; without double quantization."""
    for die_at in itertools.count(300, 100):
        out = tmp_path / f"out-{die_at}"
        job = Job(checkpoint, out, QUANTS, 2**11, commit_seconds=0, jobs=1, die_at=die_at)
        process, _ = start(job)
        process.join()
        assert process.exitcode == -9
        if len((out / ".quantkit-journal").read_text().splitlines()) > 3:  # units were recorded
            break
    work = prepare(checkpoint, find_quants(QUANTS))
    with small_slabs(2**11):
        build_work(work, job.out)
    found = contents(job.out)
    assert found.keys() == reference.keys()
    build_work(work, tmp_path / "whole")
    assert found == contents(tmp_path / "whole")


def test_source_bytes_are_read_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together with GGUF quants, in one command."""
    real, counted = os.preadv, 0

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal counted
        count = real(fd, buffers, offset)
        counted += count
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    work = prepare(checkpoint, find_quants(["gguf-all", *QUANTS, "bnb-fp4"]), bnb=NESTED)
    assert counted == 0
    artifacts = build_work(work, tmp_path / "out")
    assert len(artifacts) == 10
    assert counted == sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))


def test_a_second_run_leaves_finished_folders_alone(checkpoint: Path, tmp_path: Path) -> None:
    work = prepare(checkpoint, find_quants(QUANTS), bnb=NESTED)
    assert all(artifact.fresh for artifact in build_work(work, tmp_path))
    assert not any(artifact.fresh for artifact in build_work(work, tmp_path))
    other = prepare(checkpoint, find_quants(["bnb-nf4"]))
    with pytest.raises(OutputError, match="already exists"):
        build_work(other, tmp_path)


def test_export_is_the_dequantized_weights(checkpoint: Path, tmp_path: Path) -> None:
    """Through slabs that cut matrices, for every kind of folder."""
    for number, (quant, options) in enumerate(
        [
            ("bnb-nf4", {"double_quant": True, "block_size": 32}),
            ("bnb-fp4", {}),
            ("bnb-int8", {}),
        ]
    ):
        folder = build_folder(checkpoint, tmp_path / str(number), quant, **options)
        # Metadata depends on the folder's name.
        plain = tmp_path / f"plain-{number}" / folder.name
        shutil.copytree(checkpoint, plain, ignore=shutil.ignore_patterns("*.safetensors*"))
        from safetensors.torch import save_file

        weights = dequantized(folder)
        save_file({n: t.contiguous() for n, t in weights.items()}, plain / "model.safetensors")
        quants = find_quants(["f32", "q8_0"])
        with small_slabs(2**11):
            exported = build_work(prepare_export(folder, quants), tmp_path / f"out-{number}")
        expected = build_work(
            prepare(plain, quants, FileOptions(folder.name)), tmp_path / f"expected-{number}"
        )
        for left, right in zip(exported, expected, strict=True):
            assert left.path.read_bytes() == right.path.read_bytes()
        # What it stands for is near the weights, and is not them.
        name = "model.layers.0.block_sparse_moe.experts.3.w2.weight"
        original = stored_tensors(checkpoint)[name].float()
        error = float((weights[name].float() - original).abs().max())
        assert 0 < error < 0.4 * float(original.abs().max())


def test_commands(tmp_path: Path) -> None:
    """Build smoke-tests a folder, export makes a GGUF of it, inspect says what it holds."""
    checkpoint = random_checkpoint(tmp_path / "model", "mixtral", num_hidden_layers=1)
    out = tmp_path / "out"
    done = quantkit("build", checkpoint, "-q", "BNB-nf4", "-q", "bnb_int8", "-o", out, "--json")
    assert done.code == 0, done.err
    entries = json.loads(done.out)["artifacts"]
    assert [entry["smoke"]["verdict"] for entry in entries.values()] == ["passed", "passed"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*entries, "quantkit.json"])
    folder = out / next(name for name in entries if name.endswith("nf4"))
    done = quantkit("export", folder, "--to", "q8_0", "-o", tmp_path / "gguf", "--json")
    assert done.code == 0, done.err
    (entry,) = json.loads(done.out)["artifacts"].values()
    assert entry["smoke"]["verdict"] == "passed"
    facts = json.loads(quantkit("inspect", folder, "--json").out)
    assert facts["kind"] == "bitsandbytes artifact"
    assert (
        facts["parameters"]
        == json.loads(quantkit("inspect", checkpoint, "--json").out)["parameters"]
    )
    stored = {row["role"]: row["encoding"] for row in facts["tensors"]}
    assert {role for role, kind in stored.items() if kind == "NF4"} == {
        *(f"attn_{part}" for part in ("q", "k", "v", "output")),
        *(f"ffn_{part}_exps" for part in ("gate", "up", "down")),
    }
    plan = json.loads(quantkit("build", checkpoint, "-q", "bnb-nf4", "--dry-run", "--json").out)
    assert plan["artifacts"][0]["bytes"] == sum(f.stat().st_size for f in folder.iterdir())
    assert "NF4" in quantkit("build", checkpoint, "-q", "bnb-nf4", "-q", "q4_0", "--dry-run").out
    names = [row["name"] for row in json.loads(quantkit("quants", "--json").out)["quants"]]
    assert {"bnb-int8", "bnb-nf4", "bnb-fp4"} <= set(names)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--block-size", "48"], ["--block-size 48", "64"]),
        (["--keep", "down_projection"], ["--keep down_projection", "o_proj"]),
        (["--tensor-type", "attn_v=q8_0"], ["--tensor-type", "GGUF"]),
        (["--shard-size", "1kB"], ["--shard-size", "lm_head"]),
    ],
)
def test_bad_options(
    checkpoint: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    out = tmp_path / "out"
    sentence = refusal(quantkit("build", checkpoint, "-q", "bnb-nf4", "-o", out, *options))
    for word in words:
        assert word in sentence
    assert not out.exists()


@pytest.mark.parametrize("package", ["bitsandbytes", "torch"])
def test_missing_packages(
    checkpoint: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "out"
    sentence = refusal(quantkit("build", checkpoint, "-q", "bnb-nf4", "-o", out))
    assert package in sentence
    assert "pip install accelerate bitsandbytes safetensors torch transformers" in sentence
    assert not out.exists()
    monkeypatch.setattr(sys, "argv", [])
    assert quantkit("build", checkpoint, "-q", "q8_0", "--dry-run").code == 0


def test_bad_folders(checkpoint: Path, tmp_path: Path) -> None:
    assert "not quantized" in refusal(quantkit("export", checkpoint, "-o", tmp_path / "x"))
    assert "does not exist" in refusal(quantkit("export", tmp_path / "no", "-o", tmp_path / "x"))
    folder = build_folder(checkpoint, tmp_path / "out", "bnb-nf4")
    assert "already quantized" in refusal(quantkit("build", folder, "-q", "q8_0"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "awq"
    (folder / "config.json").write_text(json.dumps(config))
    assert "'awq'" in refusal(quantkit("export", folder, "-o", tmp_path / "x"))
    assert not (tmp_path / "x").exists()
    changed = quantkit("smoke", folder)  # a build's folder is first compared with its manifest
    assert (changed.code, changed.out) == (1, "")
    assert re.search(r"config.json \(\d+ bytes instead of", changed.err)


def test_small_files_are_carried_over(checkpoint: Path, tmp_path: Path) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "model")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (model / "generation_config.json").write_text('{"temperature": 0.5}')
    folder = build_folder(model, tmp_path / "out", "bnb-nf4")
    for name in (
        "additional_chat_templates/tool.jinja",
        "generation_config.json",
        "tokenizer.model",
    ):
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    assert "from quantkit.formats.bnb import load" in (folder / "README.md").read_text()


def test_weights_that_float16_cannot_hold(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "model", "mistral", num_hidden_layers=1)
    from safetensors.torch import load_file, save_file

    (file,) = checkpoint.glob("*.safetensors")
    weights = load_file(file)
    weights["model.layers.0.mlp.down_proj.weight"][3, 5] = 1e6
    save_file(weights, file)
    out = tmp_path / "out"
    sentence = refusal(quantkit("build", checkpoint, "-q", "bnb-int8", "-o", out))
    assert "down_proj.weight" in sentence
    assert "too large for INT8" in sentence
    assert not [path for path in out.rglob("*") if path.is_file()]
    assert torch.isinf(weights["model.layers.0.mlp.down_proj.weight"].half()).any()


@pytest.mark.native  # for its time: it writes and reads gigabytes
def test_memory_for_matrices_of_a_large_model(tmp_path: Path) -> None:
    """Those of Mixtral-8x22B. Two experts and not eight: their number costs time, not memory."""
    shape: dict[str, Any] = {
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "num_hidden_layers": 1,
        "num_local_experts": 2,
    }
    checkpoint = large_checkpoint(tmp_path / "model", **shape)
    command: list[str | Path] = [sys.executable, "-m", "quantkit", "build", checkpoint]
    command += ["-q", "bnb-nf4", "--double-quant", "-o", tmp_path / "out", "--no-smoke"]
    cost = measure([*command, "--jobs", "4"])
    print(f"{cost.peak_memory / 2**20:.0f} MiB, {cost.wall_seconds:.0f} s")  # noqa: T201 - shown with -s
    assert cost.peak_memory < 2 * 2**30
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(checkpoint)
