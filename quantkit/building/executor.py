"""Where the units of a build are encoded: by threads of this process, unless a cluster is given."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.building.encode import Encoder
from quantkit.building.heap import share_heap
from quantkit.building.output import PartialArtifact
from quantkit.building.readback import Written, read_back
from quantkit.building.source import Reading
from quantkit.building.units import Unit
from quantkit.building.work import Work
from quantkit.formats.layout import Layout

# What a unit gave: per artifact, a CRC-32 of each piece; nothing where it was not encoded for one.
Crcs = list[list[int]]


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """What an executor has to do, and whom to tell.

    ``keep`` is told what each unit gave, once its bytes are written; ``passed`` the source bytes
    that are done with, from the thread that submits; ``compiling`` what takes a while before the
    first unit. At most ``slots`` units are held in memory here, and ``threads`` encode. ``partly``
    are units that an earlier run finished for some artifacts, with the numbers of the others.
    """

    work: Work
    artifacts: Sequence[PartialArtifact]
    units: Sequence[Unit]
    reading: Reading
    threads: int
    slots: int
    keep: Callable[[int, Crcs], None]
    passed: Callable[[int], None]
    compiling: Callable[[str], None]
    partly: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def numbers(self, index: int) -> Sequence[int]:
        """The artifacts that a unit is to be encoded for."""
        return self.partly.get(index, range(len(self.artifacts)))


class Executor(Protocol):
    """Encodes units, and reads files back. A failure with a unit is raised by any later call."""

    @property
    def sha256(self) -> Mapping[Path, str]:
        """Of the source files that were read as a whole so far."""

    def prepare(self) -> None:
        """Get ready; the artifacts' files are there."""

    def submit(self, index: int) -> None:
        """Begin with a unit as soon as there is room. All are submitted, in order, once.

        Those that an earlier run finished are only passed by.
        """

    def drain(self) -> None:
        """Wait until all that was submitted is written."""

    def finish(self) -> None:
        """After the last unit: wait until all is written, and every source file hashed."""

    def cancel(self) -> None:
        """Begin with no more; what has begun is written when this returns, if it can be."""

    @property
    def readers(self) -> int:
        """How many files can be read back at once."""

    def read_back(
        self, artifact: int, file: int, written: Sequence[Written], count: Callable[[int], None]
    ) -> str:
        """The sha256 of a finished file that holds what was written; from any thread.

        Raises:
            ReadBackError, OutputError: as `readback.read_back` does.

        """

    def close(self) -> None:
        """Let go of everything."""


class Workers(Protocol):
    """Who encodes: this process, or the nodes of a cluster, which may have disks of their own."""

    def place(self, out: Path, layouts: Sequence[Layout]) -> list[PartialArtifact]:
        """The artifacts of a build, to be written wherever the workers can.

        Raises:
            OutputError: they cannot.

        """

    def start(self, assignment: EncodeRequest) -> Executor:
        """What encodes."""

    def hold(self, out: Path, entry: Mapping[str, Any]) -> bool:
        """Whether a finished artifact, by its entry in the manifest, lies with the workers."""


class Threads:
    """Encodes in threads what one reader brings, file by file, from front to back."""

    def __init__(self, assignment: EncodeRequest) -> None:
        share_heap()
        self._assignment = assignment
        work = assignment.work
        self._encoder = Encoder(work.kernel, work.imatrix, assignment.artifacts)
        self._reader = work.open_weights(assignment.reading)
        self._stream = self._reader.read(assignment.units)
        slots = max(1, min(assignment.slots, assignment.threads + 1))
        self._slots = BoundedSemaphore(slots)
        self._pool = ThreadPoolExecutor(assignment.threads, "encode")
        self._futures: set[Future[None]] = set()

    @property
    def sha256(self) -> Mapping[Path, str]:
        """Of the source files that were read as a whole so far."""
        return self._reader.sha256

    def prepare(self) -> None:
        """Compile kernels."""
        self._encoder.prepare(self._assignment.units, self._assignment.compiling)

    def submit(self, index: int) -> None:
        """Read a unit, and hand it to a thread as soon as one of the slots is free."""
        unit, raw = next(self._stream)
        if unit != self._assignment.units[index]:
            raise AssertionError("The reader leaves the order of the units.")
        if unit not in self._assignment.reading.done:
            self._slots.acquire()
            self._futures.add(self._pool.submit(self._encode, index, unit, raw))
        finished = {future for future in self._futures if future.done()}
        self._futures -= finished
        for future in finished:
            future.result()
        self._assignment.passed(unit.n_bytes)

    def drain(self) -> None:
        """Wait for the threads."""
        for future in self._futures:
            future.result()
        self._futures.clear()

    def finish(self) -> None:
        """Read to the end of the last file, and wait for the threads."""
        for _ in self._stream:
            raise AssertionError("There are units that were not submitted.")
        self.drain()

    def cancel(self) -> None:
        """Wait for the units that are being encoded."""
        self._pool.shutdown(cancel_futures=True)

    @property
    def readers(self) -> int:
        """One per thread."""
        return self._assignment.threads

    def read_back(
        self, artifact: int, file: int, written: Sequence[Written], count: Callable[[int], None]
    ) -> str:
        """Read one file, in the thread that asks."""
        whole = self._assignment.artifacts[artifact]
        planned = whole.layout.files[file]
        return read_back(whole.paths[file], planned.header, planned.n_bytes, written, count)

    def close(self) -> None:
        """Close the source and end the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._reader.close()

    def _encode(self, index: int, unit: Unit, raw: NDArray[np.uint8]) -> None:
        try:
            numbers = self._assignment.numbers(index)
            self._assignment.keep(index, self._encoder.encode(unit, raw, numbers))
        finally:
            self._slots.release()


class ThisProcess:
    """Encodes here, in threads, into the folder that everybody means."""

    def place(self, out: Path, layouts: Sequence[Layout]) -> list[PartialArtifact]:
        """The artifacts in that folder."""
        return [PartialArtifact(out, layout) for layout in layouts]

    def start(self, assignment: EncodeRequest) -> Executor:
        """Threads."""
        return Threads(assignment)

    def hold(self, _out: Path, _entry: Mapping[str, Any]) -> bool:
        """What is not in the folder is nowhere."""
        return False
