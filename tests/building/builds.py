"""Builds as tests want them: of small models, in many small slabs, in processes that may die."""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from quantkit.building import engine
from quantkit.building.artifact import Artifact
from quantkit.building.units import UNIT_ELEMENTS
from quantkit.building.work import Work, prepare
from quantkit.encodings.encoding import Encoding
from quantkit.encodings.slab import Slab
from quantkit.formats.layout import FileOptions
from quantkit.planning.quants import find_quants

GIB = 2**30

# Children are forked from a server that has loaded all they need, so that a test can afford
# hundreds of them.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        __name__,
        "gguf",
        "sentencepiece",
        "quantkit.checkpoint.raw_mistral",
        "tests.building.load_kernels",
    ]
)

# The steps of a build: whatever changes a file or the folder.
_STEPS = (
    "ftruncate",
    "pwrite",
    "fdatasync",
    "fsync",
    "rename",
    "replace",
    "unlink",
    "mkdir",
)


def build(checkpoint: Path, out: Path, *quants: str, **options: Any) -> list[Artifact]:
    """Build some quants with one call; options are those of ``engine.build``."""
    return build_work(prepare(checkpoint, find_quants(quants)), out, **options)


def build_work(work: Work, out: Path, **options: Any) -> list[Artifact]:
    return engine.build(work, out, **{"jobs": 2, "max_memory": GIB, **options})


def small_slabs(elements: int, commit_seconds: float = 0.0) -> ExitStack:
    """Slabs of so many elements, journaled so often, inside the ``with`` block."""
    stack = ExitStack()
    stack.enter_context(patch("quantkit.building.units.UNIT_ELEMENTS", elements))
    stack.enter_context(patch("quantkit.building.run.UNIT_ELEMENTS", elements))
    stack.enter_context(patch("quantkit.building.run._COMMIT_SECONDS", commit_seconds))
    stack.enter_context(patch("quantkit.building.cluster.executor._SYNC_SECONDS", commit_seconds))
    return stack


def counting_encodes(work: Work, count: Callable[[], None]) -> Work:
    """The same work, with ``count`` called each time that a slab is encoded for a block format."""

    def encode(
        slab: Slab, encoding: Encoding, importance: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        count()
        return work.kernel.encode(slab, encoding, importance)

    return replace(work, kernel=replace(work.kernel, encode=encode))


@dataclass(frozen=True)
class Job:
    """A build in a process of its own.

    ``die_at`` is the step (see ``_STEPS``) that it does not take, ``die_after`` the number of slabs
    that it encodes, in the middle of which other threads may be at anything.
    """

    checkpoint: Path
    out: Path
    quants: tuple[str, ...]
    slab: int = UNIT_ELEMENTS
    commit_seconds: float = 1e9
    jobs: int = 2
    shard_size: int | None = None
    die_at: int | None = None
    die_after: int | None = None


@dataclass(frozen=True)
class Done:
    """What a build has done so far."""

    steps: int
    slabs: int


def start(job: Job) -> tuple[ForkServerProcess, Callable[[], Done]]:
    """The running process, and what it has done so far."""
    # Without locks: one that a killed process held would be held for ever.
    steps, slabs = PROCESSES.RawValue("l", 0), PROCESSES.RawValue("l", 0)
    process = PROCESSES.Process(target=_run, args=(job, steps, slabs))
    process.start()
    return process, lambda: Done(steps.value, slabs.value)


def run(job: Job) -> Done:
    """Let a build finish, in a process of its own; what that took."""
    process, done = start(job)
    process.join()
    assert process.exitcode == 0
    return done()


def _run(job: Job, steps: Any, slabs: Any) -> None:
    lock = threading.Lock()

    def count() -> None:
        with lock:
            slabs.value += 1
            if slabs.value == job.die_after:
                os.kill(os.getpid(), signal.SIGKILL)

    work = prepare(job.checkpoint, find_quants(job.quants), FileOptions(shard_size=job.shard_size))
    with small_slabs(job.slab, job.commit_seconds), at_step(job.die_at, _die, steps):
        build_work(counting_encodes(work, count), job.out, jobs=job.jobs)


def at_step(
    number: int | None, act: Callable[[str, tuple[Any, ...]], None], steps: Any = None
) -> ExitStack:
    """Call ``act`` with the name and arguments of the given step, before it is taken.

    ``steps.value`` becomes the number of steps.
    """
    stack = ExitStack()
    steps = SimpleNamespace(value=0) if steps is None else steps
    lock = threading.Lock()

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            with lock:
                steps.value += 1
                is_it = steps.value - 1 == number
            if is_it:
                act(name, args)
            return real(*args, **options)

        return step

    for name in _STEPS:
        stack.enter_context(patch(f"os.{name}", counting(name, getattr(os, name))))
    return stack


def _die(name: str, args: tuple[Any, ...]) -> None:
    if name == "pwrite":  # in the middle of it
        fd, data, offset = args
        os.pwrite(fd, data[: len(data) // 2], offset)
    os.kill(os.getpid(), signal.SIGKILL)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def artifacts_in(folder: Path) -> dict[str, str]:
    """The sha256 of every file under a final name, by path in the folder."""
    files = [file for file in folder.rglob("*.gguf") if file.is_file()]
    names = {file.relative_to(folder): file for file in files}
    final = {n: f for n, f in names.items() if not any("." in part for part in n.parts[:-1])}
    return {str(name): sha256_of(file) for name, file in sorted(final.items())}


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def manifest_of(folder: Path) -> dict[str, Any]:
    artifacts: dict[str, Any] = json.loads((folder / "quantkit.json").read_text())["artifacts"]
    return artifacts


def timeless_manifest_of(folder: Path) -> dict[str, Any]:
    """The same without the times of files, which no two builds have in common."""
    artifacts = manifest_of(folder)
    for entry in artifacts.values():
        for file in entry["files"]:
            file.pop("modified_ns", None)
    return artifacts


def check_manifest(folder: Path, names: Iterable[str]) -> None:
    """The manifest lists exactly these artifacts, and their files are as it says."""
    artifacts = manifest_of(folder)
    assert sorted(artifacts) == sorted(names)
    for entry in artifacts.values():
        for file in entry["files"]:
            path = folder / file["name"]
            assert path.stat().st_size == file["bytes"]
            assert sha256_of(path) == file["sha256"]
