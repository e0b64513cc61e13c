"""Kill a build at any moment: nothing looks finished, and the next run ends with the same bytes."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from quantkit.building.artifact import Check, Progress
from quantkit.building.journal import Journal, Record, partial_paths
from quantkit.building.work import Work, prepare
from quantkit.core.errors import CheckpointError, Interrupted, OutputError
from quantkit.formats.gguf.layout import PlannedFile
from quantkit.formats.layout import FileOptions
from quantkit.planning.quants import find_quants
from tests.building import ctrl_c
from tests.building.builds import (
    Job,
    artifacts_in,
    build,
    build_work,
    check_manifest,
    counting_encodes,
    manifest_of,
    names_in,
    run,
    small_slabs,
    start,
)
from tests.cli.command import sentences
from tests.large_experts import large_experts
from tests.random_checkpoints import random_checkpoint

QUANTS = ("q8_0", "q4_0")


def check_unfinished(out: Path, reference: dict[str, str]) -> None:
    """Whatever has a final name is the whole artifact, and no manifest names one that is not."""
    finished = artifacts_in(out)
    assert finished.items() <= reference.items()
    if (out / "quantkit.json").exists():
        for entry in manifest_of(out).values():
            for file in entry["files"]:
                assert file["sha256"] == reference[file["name"]]


def check_finished(out: Path, reference: dict[str, str]) -> None:
    """The artifacts and the manifest are there, and nothing else."""
    assert artifacts_in(out) == reference
    assert names_in(out) == {*reference, "quantkit.json"}
    check_manifest(out, {Path(name).parts[0].removesuffix(".gguf") for name in reference})


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("checkpoint", 20),
        pytest.param("gguf", 6, marks=pytest.mark.native),
        pytest.param("described", 6, marks=pytest.mark.native),
        pytest.param("gguf", 20, marks=pytest.mark.search),
        pytest.param("described", 20, marks=pytest.mark.search),
    ],
)
def test_kills_at_random_moments(kind: str, wanted: int, mixtral: Path, tmp_path: Path) -> None:
    """Every other kill comes before one of the steps, the rest after one of the slabs.

    A small model's build is start and end for the most part, so steps alone may never fall between
    the first slab and the last.
    """
    rng = random.Random(20)
    source = mixtral
    if kind == "gguf":
        (artifact,) = build(mixtral, tmp_path / "source", "bf16")
        source = artifact.path
    elif kind == "described":  # most of whose tensors the converter's process computes
        source = tmp_path / "source"
        large_experts(source, hidden=256, width=256, experts=4, layers=2, fp8=True)
    job = Job(source, tmp_path / "uninterrupted", QUANTS, slab=2**14, commit_seconds=0)
    all_of = run(job)
    reference = artifacts_in(job.out)
    assert len(reference) == len(QUANTS)

    kills = resumed = 0
    for round_ in itertools.count():
        out = tmp_path / f"killed-{round_}"
        was_killed = False
        while True:
            again = replace(job, out=out)
            if kills < wanted and kills % 2:
                again = replace(again, die_at=rng.randrange(all_of.steps))
            elif kills < wanted:
                again = replace(again, die_after=rng.randrange(1, all_of.slabs))
            process, done = start(again)
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            kills += 1
            was_killed = True
            check_unfinished(out, reference)
        check_finished(out, reference)
        resumed += was_killed and done().slabs < all_of.slabs
        if kills >= wanted:
            break
    assert resumed > 0


@pytest.mark.parametrize("shard_size", [None, 300_000], ids=["single", "shards"])
def test_a_kill_at_every_single_step(mistral: Path, tmp_path: Path, shard_size: int | None) -> None:
    """With one thread and one commit the steps are always the same, so each can be the last."""
    quants = ("q8_0", "q4_0") if shard_size is None else ("q4_0",)
    whole = Job(mistral, tmp_path / "whole", quants, jobs=1, shard_size=shard_size)
    run(whole)
    reference = artifacts_in(whole.out)
    work = prepare(mistral, find_quants(quants), FileOptions(shard_size=shard_size))
    for step in itertools.count():
        out = tmp_path / f"step-{step}"
        process, _ = start(replace(whole, out=out, die_at=step))
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        check_unfinished(out, reference)
        build_work(work, out)
        check_finished(out, reference)
        shutil.rmtree(out)
    assert step > 30


# Ctrl-C.


class Counter:
    """How often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


@pytest.mark.parametrize(
    ("moment", "sent"),
    [
        ("encode", "SIGINT"),
        ("slab", "SIGINT"),
        ("slab", "SIGTERM"),
        ("verify", "SIGINT"),
        ("check", "SIGTERM"),
        ("generate", "SIGINT"),
    ],
)
def test_ctrl_c(mistral: Path, tmp_path: Path, moment: str, sent: str) -> None:
    out = tmp_path / "out"
    quant = "q8_0"
    command = [sys.executable, "-m", "tests.building.ctrl_c", moment, sent]
    stopped = subprocess.run(
        [*command, "build", mistral, "-q", quant, "-o", out, "--jobs", "1"],
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert stopped.returncode == Interrupted.exit_code == 130
    assert stopped.stdout == ""
    remark, sentence = sentences(stopped.stderr)
    assert remark.endswith(f"into {out}")
    match = re.fullmatch(
        r"Error: Stopped with (\d+) of (\d+) slabs encoded; run the same command to go on from "
        r"there\.",
        sentence,
    )
    assert match, sentence
    done, total = map(int, match.groups())
    assert done < total if moment in ("encode", "slab") else done == total
    assert not artifacts_in(out)

    count = Counter()
    with small_slabs(ctrl_c.SLAB):
        build_work(counting_encodes(prepare(mistral, find_quants([quant])), count), out)
    assert count.calls == total - done
    build(mistral, tmp_path / "plain", quant)
    check_finished(out, artifacts_in(tmp_path / "plain"))


# What an interrupted build leaves, and what the next one makes of it.

SLAB = 2**14


def interrupt(work: Work, out: Path, after: int) -> None:
    """Stop a build, as by Ctrl-C, when it has read so many slabs; all of them are finished."""

    def report(_: Progress) -> None:
        nonlocal after
        after -= 1
        if not after:
            raise KeyboardInterrupt

    with small_slabs(SLAB), pytest.raises(Interrupted):
        build_work(work, out, report=report, jobs=1)
    assert not artifacts_in(out)


def encodes_to_finish(work: Work, out: Path) -> int:
    """Finish a build; how many slabs it had to encode for that, each for each block format."""
    count = Counter()
    with small_slabs(SLAB):
        build_work(counting_encodes(work, count), out)
    return count.calls


@pytest.fixture
def work(mistral: Path) -> Work:
    return prepare(mistral, find_quants(QUANTS))


@pytest.fixture
def reference(mistral: Path, tmp_path: Path) -> dict[str, str]:
    build(mistral, tmp_path / "reference", *QUANTS)
    return artifacts_in(tmp_path / "reference")


def test_partials_have_no_header_until_the_end(work: Work, tmp_path: Path) -> None:
    interrupt(work, tmp_path / "out", 30)
    partials = list((tmp_path / "out").glob("*.gguf.partial"))
    assert len(partials) == len(QUANTS)
    for partial in partials:
        assert partial.read_bytes()[:64] == bytes(64)


def test_only_the_rest_is_encoded(work: Work, tmp_path: Path, reference: dict[str, str]) -> None:
    all_encodes = encodes_to_finish(work, tmp_path / "at once")
    out = tmp_path / "out"
    interrupt(work, out, 20)
    interrupt(work, out, 25)
    assert encodes_to_finish(work, out) <= all_encodes - 40
    check_finished(out, reference)


def test_published_artifacts_are_not_built_again(
    work: Work, tmp_path: Path, reference: dict[str, str]
) -> None:
    """A crash between two renames costs nothing but the reading."""
    out = tmp_path / "out"

    def crash_at_the_second(_: Path) -> Check:
        if artifacts_in(out):
            raise SystemError
        return Check(ok=True, verdict="passed", record={})

    with small_slabs(SLAB), pytest.raises(SystemError):
        build_work(work, out, check=crash_at_the_second)
    [first] = artifacts_in(out)
    modified = (out / first).stat().st_mtime_ns
    assert encodes_to_finish(work, out) == 0
    assert (out / first).stat().st_mtime_ns == modified
    check_finished(out, reference)


def test_fewer_quants_go_on_where_more_were(mistral: Path, work: Work, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(work, out, 30)
    fewer = prepare(mistral, find_quants(["q4_0"]))
    all_encodes = encodes_to_finish(fewer, tmp_path / "at once")
    assert encodes_to_finish(fewer, out) <= all_encodes - 28
    check_finished(out, artifacts_in(tmp_path / "at once"))


def test_other_slabs_start_over(work: Work, tmp_path: Path, reference: dict[str, str]) -> None:
    interrupt(work, tmp_path / "out", 30)
    build_work(work, tmp_path / "out")
    check_finished(tmp_path / "out", reference)


@pytest.mark.parametrize("change", ["modified", "rewritten"])
def test_a_changed_source_starts_over(mistral: Path, tmp_path: Path, change: str) -> None:
    """Its bytes never mix with those of the one before."""
    checkpoint = tmp_path / "changing" / "model"
    shutil.copytree(mistral, checkpoint)
    out = tmp_path / "out"
    interrupt(prepare(checkpoint, find_quants(QUANTS)), out, 30)
    if change == "modified":
        os.utime(checkpoint / "model.safetensors", ns=(1, 1))
    else:
        random_checkpoint(checkpoint, "mistral", seed=1, intermediate_size=256, num_hidden_layers=1)
    work = prepare(checkpoint, find_quants(QUANTS))
    all_encodes = encodes_to_finish(work, tmp_path / "at once")
    assert encodes_to_finish(work, out) == all_encodes
    check_finished(out, artifacts_in(tmp_path / "at once"))


def test_a_source_that_changes_during_the_build_is_noticed(mistral: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "changing" / "model"
    shutil.copytree(mistral, checkpoint)
    weights = checkpoint / "model.safetensors"

    def touch(progress: Progress) -> None:
        os.utime(weights, ns=(progress.done, progress.done))

    with pytest.raises(CheckpointError, match="changed while it was read; run") as caught:
        build(checkpoint, tmp_path / "out", "q8_0", report=touch)
    assert str(weights) in str(caught.value)
    assert not artifacts_in(tmp_path / "out")


@pytest.mark.parametrize("change", ["truncated", "deleted"])
def test_a_source_that_goes_away_during_the_build(
    mixtral: Path, tmp_path: Path, change: str
) -> None:
    """The last of several files, which is opened when the others have been read."""
    checkpoint = tmp_path / "changing" / "model"
    shutil.copytree(mixtral, checkpoint)
    work = prepare(checkpoint, find_quants(["q8_0"]))
    last = work.checkpoint.files[-1]

    def harm(_: Progress) -> None:
        if change == "deleted":
            last.unlink(missing_ok=True)
        elif last.stat().st_size > 5000:
            os.truncate(last, 5000)

    with pytest.raises(CheckpointError) as caught:
        build_work(work, tmp_path / "out", report=harm)
    assert str(last) in str(caught.value)
    assert "download it again" in str(caught.value)
    assert not artifacts_in(tmp_path / "out")


def test_a_flipped_byte_in_a_partial_file_is_found(
    work: Work, tmp_path: Path, reference: dict[str, str]
) -> None:
    """Between the interruption and the next run, in a slab that the journal has."""
    out = tmp_path / "out"
    interrupt(work, out, 30)
    [partial] = out.glob("*Q8_0.gguf.partial")
    [file] = work.layouts[0].files
    assert isinstance(file, PlannedFile)
    names = [tensor.target.name for tensor in file.tensors]
    offset = file.offsets[names.index("token_embd.weight")] + 100  # it is read first
    with partial.open("r+b") as stream:
        stream.seek(offset)
        [byte] = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))
    with small_slabs(SLAB), pytest.raises(OutputError) as caught:
        build_work(work, out)
    assert str(partial) in str(caught.value)
    assert "does not read back as it was written" in str(caught.value)
    assert not artifacts_in(out)
    build_work(work, out)
    check_finished(out, reference)


@pytest.mark.parametrize("lost", ["a partial file", "the journal"])
def test_what_is_lost_is_built_again(
    work: Work, tmp_path: Path, reference: dict[str, str], lost: str
) -> None:
    out = tmp_path / "out"
    interrupt(work, out, 30)
    [partial] = out.glob("*Q8_0.gguf.partial")
    (partial if lost == "a partial file" else out / ".quantkit-journal").unlink()
    with small_slabs(SLAB):
        build_work(work, out)
    check_finished(out, reference)


def test_a_partial_file_of_unknown_origin_is_overwritten(
    work: Work, tmp_path: Path, reference: dict[str, str]
) -> None:
    """Nothing of it shows, not even between the tensors."""
    for number, name in enumerate(reference):
        partial = tmp_path / "out" / f"{name}.partial"
        if number:
            partial.mkdir()
            (partial / "shard.gguf").touch()
        else:
            partial.parent.mkdir()
            partial.write_bytes(b"\xff" * 2 * work.n_bytes)
    build_work(work, tmp_path / "out")
    check_finished(tmp_path / "out", reference)


# The journal.

CRCS = {0: [[11], [12, 13]], 1: [[21], [22, 23]], 7: [[71], []]}
ARTIFACTS = {"a.partial": "sum of a", "b.partial": "sum of b"}


def write_journal(folder: Path) -> Path:
    journal = Journal(folder, {"source": "s"}, ARTIFACTS)
    journal.start()
    for unit, crcs in CRCS.items():
        journal.record([(unit, crcs)])
    return journal.path


def resumed(
    folder: Path, artifacts: dict[str, str] = ARTIFACTS, source: str = "s"
) -> dict[int, Record]:
    journal = Journal(folder, {"source": source}, artifacts)
    journal.resume()
    return journal.finished


def test_a_journal_cut_anywhere_tells_no_lies(tmp_path: Path) -> None:
    path = write_journal(tmp_path)
    assert resumed(tmp_path) == CRCS
    data = path.read_bytes()
    seen = set()
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        found = resumed(tmp_path)
        assert found.items() <= CRCS.items()
        seen.add(len(found))
        # What the next run appends is not spoiled by the cut.
        if found:
            Journal(tmp_path, {"source": "s"}, ARTIFACTS).record([(9, [[91], [92]])])
            assert resumed(tmp_path) == {**found, 9: [[91], [92]]}
    assert seen == {0, 1, 2, 3}


def test_a_journal_serves_a_part_of_its_artifacts(tmp_path: Path) -> None:
    write_journal(tmp_path)
    assert resumed(tmp_path, {"b.partial": "sum of b"}) == {
        0: [[12, 13]],
        1: [[22, 23]],
        7: [[]],
    }
    assert resumed(tmp_path, dict(reversed(ARTIFACTS.items())))[7] == [[], [71]]


def test_a_journal_serves_no_other_build(tmp_path: Path) -> None:
    write_journal(tmp_path)
    assert resumed(tmp_path, {"a.partial": "another plan"}) == {}
    assert resumed(tmp_path, source="another source") == {}


def test_a_forged_journal_has_nothing_else_deleted(work: Work, tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "precious.partial"
    outside.touch()
    out.mkdir()
    (out / "precious").touch()
    names = [str(outside), "../precious.partial", "precious", "..", ".", ""]
    header = {"artifacts": dict.fromkeys(names, "")}
    (out / ".quantkit-journal").write_text(json.dumps(header))
    assert partial_paths(out) == []
    build_work(work, out)
    assert outside.exists()
    assert (out / "precious").exists()
