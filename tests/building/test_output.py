"""The output folder: full disks, locks, what already exists, what is rejected, the manifest."""

import errno
import hashlib
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import quantkit as package
from quantkit.building.artifact import Check, Progress
from quantkit.building.work import Work, prepare
from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.core.errors import NoSpaceError, OutputError
from quantkit.formats.layout import FileOptions
from quantkit.planning.quants import find_quants
from tests.building.builds import (
    artifacts_in,
    at_step,
    build,
    build_work,
    check_manifest,
    manifest_of,
    names_in,
    sha256_of,
)
from tests.building.disks import MIB, SmallDisk
from tests.cli.command import quantkit, refusal
from tests.random_checkpoints import random_checkpoint

PASSED = Check(ok=True, verdict="passed", record={"verdict": "passed"})


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk", monkeypatch)
    yield disk
    disk.unmount()


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        name: ((folder / name).stat().st_mtime_ns, sha256_of(folder / name))
        for name in names_in(folder)
    }


# Full disks.


def test_space_is_checked_before_the_first_byte(mistral: Path, small_disk: SmallDisk) -> None:
    out = small_disk.folder / "out"
    work = prepare(mistral, find_quants(["f32", "f16"]))
    free = small_disk.free
    sentence = refusal(quantkit("build", mistral, "-q", "f32", "-q", "f16", "-o", out))
    words = sentence.split()
    [needed] = [int(word[1:]) for word in words if word.startswith("(") and word[1:].isdigit()]
    assert work.n_bytes <= needed <= work.n_bytes + MIB
    assert needed > free
    assert str(out) in sentence
    assert "-o" in sentence
    assert names_in(out) == set()


def test_what_an_interrupted_build_wrote_counts_as_space(
    mistral: Path, small_disk: SmallDisk
) -> None:
    """A resumed build needs room for the rest only."""
    out = small_disk.folder / "out"
    work = prepare(mistral, find_quants(["f16"]))

    def stop_late(progress: Progress) -> None:
        if progress.stage == "verify":
            raise SystemError

    with pytest.raises(SystemError):
        build_work(work, out, report=stop_late)
    small_disk.fill(but=MIB + 2**16)
    assert small_disk.free < work.n_bytes + MIB
    build_work(work, out)
    check_manifest(out, [work.layouts[0].name])


def test_a_disk_that_fills_up_while_building(
    mistral: Path, tmp_path: Path, small_disk: SmallDisk
) -> None:
    build(mistral, tmp_path / "reference", "q8_0", "f16")
    out = small_disk.folder / "out"
    work = prepare(mistral, find_quants(["q8_0", "f16"]))

    def fill(progress: Progress) -> None:
        if progress.done < progress.total // 4:
            small_disk.fill(but=2**18)

    with pytest.raises(NoSpaceError) as caught:
        build_work(work, out, report=fill, jobs=1)
    sentence = str(caught.value)
    assert str(out) in sentence
    [needed] = [int(word[1:]) for word in sentence.split() if word[1:].isdigit()]
    assert work.n_bytes // 2 < needed < work.n_bytes + MIB
    assert "free that much and run the same command to resume" in sentence
    assert artifacts_in(out) == {}
    assert not (out / "quantkit.json").exists()

    small_disk.clear()
    assert small_disk.free > needed
    build_work(work, out)
    assert artifacts_in(out) == artifacts_in(tmp_path / "reference")
    assert names_in(out) == names_in(tmp_path / "reference")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_any_step_may_fail(mistral: Path, tmp_path: Path, code: int) -> None:
    """Wherever the system refuses: a sentence, nothing that looks finished, and a way on."""
    quants = ("q8_0", "q4_0") if code == errno.ENOSPC else ("q4_0",)
    work = prepare(mistral, find_quants(quants))
    build_work(work, tmp_path / "reference")
    reference = artifacts_in(tmp_path / "reference")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    def failure(step: int) -> OutputError | None:
        try:
            with at_step(step, fail):
                build_work(work, out, jobs=1)
        except OutputError as error:
            return error
        return None

    out = tmp_path / "out"
    for step in itertools.count(1):  # step 0 makes the folder
        error = failure(step)
        if error is None:
            break
        assert str(out) in str(error)
        assert str(error).endswith("run the same command to resume.")
        assert isinstance(error, NoSpaceError) == (code == errno.ENOSPC)
        assert artifacts_in(out).items() <= reference.items()
        build_work(work, out)
        assert artifacts_in(out) == reference
        assert names_in(out) == {*reference, "quantkit.json"}
        shutil.rmtree(out)
    assert step > 25


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_on_the_command_line(mistral: Path, tmp_path: Path, code: int) -> None:
    out = tmp_path / "out"
    command = ["build", mistral, "-q", "q8_0", "-o", out, "--no-smoke", "--jobs", "1"]

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with at_step(10, fail):
        sentence = refusal(quantkit(*command))
    assert sentence.startswith(f"The disk of {out} is full: the build still needs up to ")
    assert artifacts_in(out) == {}
    assert quantkit(*command).code == 0
    build(mistral, tmp_path / "reference", "q8_0")
    assert artifacts_in(out) == artifacts_in(tmp_path / "reference")


# Two builds at once.


def test_a_second_build_into_the_folder_is_refused(mistral: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["build", mistral, "-q", "q4_0", "-o", out, "--no-smoke"]

    def build_again(_: Path) -> Check:
        before = snapshot(out)
        process = subprocess.run(
            [sys.executable, "-m", "quantkit", *map(str, command)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 2
        assert process.stderr.splitlines()[-1].startswith("Error: Another build is writing to")
        sentence = refusal(quantkit(*command))
        assert sentence.startswith(f"Another build is writing to {out}; wait for it or choose")
        assert snapshot(out) == before
        return PASSED

    work = prepare(mistral, find_quants(["q8_0"]))
    [artifact] = build_work(work, out, check=build_again)
    assert artifact.fresh
    check_manifest(out, [artifact.layout.name])
    assert quantkit(*command).code == 0
    assert len(artifacts_in(out)) == 2


# What already exists.


def test_a_foreign_file_is_left_alone(mistral: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    foreign = out / "Model-591K-Q4_0.gguf"
    out.mkdir()
    foreign.write_bytes(b"somebody's")
    before = snapshot(out)
    sentence = refusal(quantkit("build", mistral, "-q", "q4_0", "-q", "q8_0", "-o", out))
    assert sentence.startswith(f"{foreign} already exists and was not built from this")
    assert "-o" in sentence
    assert snapshot(out) == before


def test_a_foreign_folder_is_left_alone(mistral: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "out" / "Model-591K-Q4_0"
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("precious")
    command = ["build", mistral, "-q", "q4_0", "-o", tmp_path / "out", "--shard-size", "200kB"]
    assert refusal(quantkit(*command)).startswith(f"{foreign} already exists")
    assert names_in(tmp_path / "out") == {"Model-591K-Q4_0/thesis.txt"}


def test_other_files_in_the_folder_stay(mistral: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "other.gguf.partial").write_text("a download")
    build(mistral, tmp_path, "q4_0")
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / "other.gguf.partial").read_text() == "a download"


@pytest.mark.parametrize("options", [[], ["--shard-size", "300kB"]], ids=["single", "shards"])
def test_a_finished_build_is_not_touched(mistral: Path, tmp_path: Path, options: list[str]) -> None:
    command = ["build", mistral, "-q", "q4_0", "-q", "q8_0", "-o", tmp_path / "out", "--no-smoke"]
    first = quantkit(*command, *options)
    assert first.code == 0
    assert "there already" not in " ".join(first.out.split())
    before = snapshot(tmp_path / "out")
    again = quantkit(*command, *options)
    assert again.code == 0
    assert again.out.count("(was") == 2
    assert snapshot(tmp_path / "out") == before
    listed = json.loads(quantkit(*command, *options, "--json").out)["artifacts"]
    assert listed == manifest_of(tmp_path / "out")


def test_another_quant_later(mistral: Path, tmp_path: Path) -> None:
    build(mistral, tmp_path, "q8_0")
    before = snapshot(tmp_path)
    entries = manifest_of(tmp_path)
    artifacts = build(mistral, tmp_path, "q4_0", "q8_0")
    assert [artifact.fresh for artifact in artifacts] == [False, True]
    after = snapshot(tmp_path)
    assert {name: after[name] for name in artifacts_in(tmp_path) if name in before} == {
        name: before[name] for name in before if name.endswith(".gguf")
    }
    now = manifest_of(tmp_path)
    assert {name: now[name] for name in entries} == entries
    check_manifest(tmp_path, ["Model-591K-Q4_0", "Model-591K-Q8_0"])


def test_a_lost_artifact_is_built_again(mistral: Path, tmp_path: Path) -> None:
    build(mistral, tmp_path, "q8_0", "q4_0")
    before = snapshot(tmp_path)
    [lost] = tmp_path.glob("*Q8_0.gguf")
    lost.unlink()
    build(mistral, tmp_path, "q8_0", "q4_0")
    after = snapshot(tmp_path)
    assert after[lost.name][1] == before[lost.name][1]
    assert after["Model-591K-Q4_0.gguf"] == before["Model-591K-Q4_0.gguf"]


def test_a_truncated_artifact_is_not_taken_for_finished(mistral: Path, tmp_path: Path) -> None:
    build(mistral, tmp_path, "q8_0")
    [artifact] = tmp_path.glob("*.gguf")
    os.truncate(artifact, 1000)
    with pytest.raises(OutputError, match=r"has 1,000 bytes instead of .* builds it anew"):
        build(mistral, tmp_path, "q8_0")


def test_artifacts_of_other_weights_are_not_taken_for_these(mistral: Path, tmp_path: Path) -> None:
    """The same model after another epoch: every header is the same, and no byte of the rest."""
    checkpoint = shutil.copytree(mistral, tmp_path / "model")
    out = tmp_path / "out"
    build(checkpoint, out, "q8_0")
    before = snapshot(out)
    for stamp in (1, 2):  # copied, downloaded again: the same bytes with another time
        os.utime(checkpoint / "model.safetensors", ns=(stamp, stamp))
        [artifact] = build(checkpoint, out, "q8_0")
        assert not artifact.fresh
    random_checkpoint(checkpoint, "mistral", seed=1, intermediate_size=256, num_hidden_layers=1)
    with pytest.raises(OutputError, match="was not built from this checkpoint"):
        build(checkpoint, out, "q8_0")
    assert snapshot(out) == before


def test_artifacts_of_other_settings_are_not_taken_for_these(mistral: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(mistral, tmp_path / "model")
    build(checkpoint, tmp_path / "out", "q8_0")
    before = snapshot(tmp_path / "out")
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(OutputError, match="was not built from this checkpoint with these settings"):
        build(checkpoint, tmp_path / "out", "q8_0")
    assert snapshot(tmp_path / "out") == before


def write_imatrix(path: Path, work: Work, scale: float) -> None:
    """llama-imatrix's older format: entries with name, calls and one value per column."""
    targets = [target for target in work.model.targets if len(target.shape) > 1]
    parts = [struct.pack("<i", len(targets))]
    for target in targets:
        name = target.name.encode()
        values = [scale + (column * 7 % 31) for column in range(target.columns)]
        parts.append(struct.pack("<i", len(name)) + name)
        parts.append(struct.pack(f"<ii{len(values)}f", 1, len(values), *values))
    path.write_bytes(b"".join(parts))


def test_artifacts_of_another_imatrix_are_not_taken_for_these(
    mistral: Path, tmp_path: Path
) -> None:
    """The file has its old name and new values."""
    imatrix = tmp_path / "imatrix.dat"
    quants = find_quants(["q4_0"])
    plain = prepare(mistral, quants)
    write_imatrix(imatrix, plain, 1)
    build_work(prepare(mistral, quants, imatrix=load_imatrix(imatrix)), tmp_path / "out")
    [entry] = manifest_of(tmp_path / "out").values()
    assert entry["imatrix"] == {"file": "imatrix.dat", "sha256": sha256_of(imatrix)}
    again = prepare(mistral, quants, imatrix=load_imatrix(imatrix))
    [artifact] = build_work(again, tmp_path / "out")
    assert not artifact.fresh
    write_imatrix(imatrix, plain, 100)
    with pytest.raises(OutputError, match="was not built from this checkpoint with these settings"):
        build_work(prepare(mistral, quants, imatrix=load_imatrix(imatrix)), tmp_path / "out")


# What is rejected.


def reject(*names: str) -> Any:
    """A check that finds fault with the artifacts whose file names begin so."""

    def check(path: Path) -> Check:
        ok = not path.name.startswith(names)
        return PASSED if ok else Check(ok, "It says nothing.", {"verdict": "It says nothing."})

    return check


@pytest.mark.parametrize("shard_size", [None, 300_000], ids=["single", "shards"])
def test_a_rejected_artifact_never_looks_finished(
    mistral: Path, tmp_path: Path, shard_size: int | None
) -> None:
    quants, files = find_quants(["q8_0", "q5_0", "q4_0"]), FileOptions(shard_size=shard_size)
    work = prepare(mistral, quants, files)
    artifacts = build_work(work, tmp_path, check=reject("Model-591K-Q5_0"))
    assert [artifact.check and artifact.check.ok for artifact in artifacts] == [True, False, True]
    rejected = artifacts[1].path
    assert rejected.name == f"Model-591K-Q5_0{'' if shard_size else '.gguf'}.rejected"
    assert rejected.exists()
    sums = artifacts_in(tmp_path)
    assert not any("Q5_0" in name for name in sums)
    check_manifest(tmp_path, ["Model-591K-Q8_0", "Model-591K-Q4_0"])
    assert not list(tmp_path.rglob("*.partial"))
    assert not (tmp_path / ".quantkit-journal").exists()

    again = build_work(work, tmp_path, check=reject("Model-591K-Q5_0"))
    assert [artifact.fresh for artifact in again] == [False, True, False]
    final = build_work(work, tmp_path, check=reject())
    assert [artifact.fresh for artifact in final] == [False, True, False]
    check_manifest(tmp_path, [layout.name for layout in work.layouts])
    assert {name: artifacts_in(tmp_path)[name] for name in sums} == sums


def test_a_model_that_computes_infinities_is_rejected(tmp_path: Path) -> None:
    """For real: every weight is finite, and llama.cpp's logits are not."""
    checkpoint = random_checkpoint(
        tmp_path / "model", "mistral", dtype="F32", intermediate_size=256, num_hidden_layers=1
    )
    weights = checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    begin, end = header["lm_head.weight"]["data_offsets"]
    start = len(data) - max(x["data_offsets"][1] for k, x in header.items() if k[0] != "_")
    data[start + begin : start + end] = struct.pack("<f", 3e38) * ((end - begin) // 4)
    weights.write_bytes(data)
    command = ["build", checkpoint, "-q", "f32", "-o", tmp_path / "out"]
    outcome = quantkit(*command)
    assert outcome.code == 1
    last = outcome.err.splitlines()[-1]
    assert last.startswith(
        "Error: 1 of 1 artifacts failed the smoke test and are kept under another name: "
        "Model-591K-F32.gguf.rejected: "
    )
    assert "passed" not in outcome.out
    assert names_in(tmp_path / "out") == {"Model-591K-F32.gguf.rejected"}
    report = json.loads(quantkit(*command, "--json").out)["artifacts"]
    assert report["Model-591K-F32"]["smoke"]["ok"] is False


# The manifest.


def test_the_manifest_tells_where_everything_came_from(mixtral: Path, tmp_path: Path) -> None:
    command = ["build", mixtral, "-q", "q4_k_m"]
    plan = json.loads(quantkit(*command, "--dry-run", "--json").out)["artifacts"][0]
    assert quantkit(*command, "-o", tmp_path).code == 0
    document = json.loads((tmp_path / "quantkit.json").read_text())
    assert document["version"] == 1
    [(name, entry)] = document["artifacts"].items()
    [file] = entry["files"]
    assert name == "Model-8x593K-Q4_K_M"
    assert file["name"] == f"{name}.gguf"
    assert file["bytes"] == plan["bytes"] == (tmp_path / file["name"]).stat().st_size
    assert file["sha256"] == sha256_of(tmp_path / file["name"])
    assert entry["plan_sha256"] == plan["plan_sha256"]
    assert entry["bits_per_weight"] == pytest.approx(plan["bits_per_weight"], abs=1e-4)
    assert entry["quant"] == "q4_k_m"
    assert entry["parameters"] > 1_900_000
    assert entry["quantkit"] == package.__version__
    assert entry["kernel"]["name"] == "fast"
    assert f"quantkit {package.__version__} with llama-cpp" in entry["kernel"]["version"]
    assert entry["imatrix"] is None
    assert entry["smoke"]["ok"] is True
    assert entry["smoke"]["tokens_per_second"] > 0
    source = entry["source"]
    assert source["name"] == "model"
    assert source["family"] == "mixtral"
    weights = sorted(mixtral.glob("*.safetensors"))
    assert [part["name"] for part in source["weights"]] == [path.name for path in weights]
    settings = {part["name"] for part in source["settings"]}
    assert settings == {"config.json", "tokenizer.model", "tokenizer_config.json"}
    for part in source["weights"] + source["settings"]:
        path = mixtral / part["name"]
        assert part["bytes"] == path.stat().st_size
        assert part["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"version": 2, "artifacts": {}}',
        '{"version": 1}',
        '{"version": 1, "artifacts": 3}',
    ],
)
def test_a_manifest_of_unknown_kind_is_left_alone(
    mistral: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "quantkit.json").write_text(content)
    sentence = refusal(quantkit("build", mistral, "-q", "q4_0", "-o", tmp_path))
    assert str(tmp_path / "quantkit.json") in sentence
    assert sentence.endswith("move it away.")
    assert names_in(tmp_path) == {"quantkit.json"}
    assert (tmp_path / "quantkit.json").read_text() == content
