"""Reading a checkpoint's files from front to back, each byte once, hashed on the way."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantkit.building.units import Unit
from quantkit.checkpoint.checkpoint import (
    Checkpoint,
    ComputedRows,
    Description,
    Range,
    RowReader,
)
from quantkit.core.errors import CheckpointError
from quantkit.core.files import open_file

_GAP_CHUNK = 8 * 2**20
MOST_HELD = 512 * 2**20

Stamp: TypeAlias = tuple[int, int]  # a file's size, and when it was modified, in nanoseconds


def stamp(path: Path) -> Stamp:
    """What changes when a file does.

    Raises:
        CheckpointError: the file is not there any more.

    """
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    return status.st_size, status.st_mtime_ns


def read_exactly(fd: int, n_bytes: int, offset: int, path: Path) -> NDArray[np.uint8]:
    """Bytes of an open file; the one place where weights are read.

    Raises:
        CheckpointError: the file ends early or cannot be read.

    """
    buffer = np.empty(n_bytes, np.uint8)
    view, done = buffer.data, 0
    while done < n_bytes:
        try:
            count = os.preadv(fd, [view[done:]], offset + done)
        except OSError as error:
            raise _unreadable(path, error) from None
        if count == 0:
            raise CheckpointError(f"{path} became shorter while it was read; download it again.")
        done += count
    return buffer


def stamps_of(checkpoint: Checkpoint) -> dict[Path, Stamp]:
    """The stamp of every weight file. The Hub's have no time: their commit stands for it.

    Raises:
        CheckpointError: a local file is not there any more.

    """
    if checkpoint.repo is not None:
        return {file: (checkpoint.repo.sizes[file.name], 0) for file in checkpoint.files}
    return {file: stamp(file) for file in checkpoint.files}


def identify_source(
    checkpoint: Checkpoint, stamps: Mapping[Path, Stamp] | None = None
) -> list[list[Any]]:
    """What tells a checkpoint's weights from any other's, for a journal.

    Args:
        checkpoint: local or on the Hub.
        stamps: of its files, where they were taken before.

    Raises:
        CheckpointError: a local file is not there any more.

    """
    if stamps is None:
        stamps = stamps_of(checkpoint)
    repo = checkpoint.repo
    if repo is None:
        return [[str(file.resolve()), *known] for file, known in stamps.items()]
    return [
        [
            f"{repo.repo_id}/{file.name}@{repo.commit}",
            repo.sizes[file.name],
            repo.hashes.get(file.name) or repo.etags.get(file.name),
        ]
        for file in stamps
    ]


def require_unchanged(checkpoint: Checkpoint, known: list[list[Any]]) -> None:
    """Refuse a result of weights that are not those any more that the work began with.

    Args:
        checkpoint: local or on the Hub.
        known: what `identify_source` gave when the work began.

    Raises:
        CheckpointError: a file is another now, or gone.

    """
    if identify_source(checkpoint) != known:
        raise CheckpointError(
            f"The weights of {checkpoint.path} changed while they were read; run the same command "
            "again."
        )


def group_by_file(units: Iterable[Unit]) -> dict[Path | None, tuple[Unit, ...]]:
    """Units in the order of ``cut_units`` by the file that they lie in; None: computed values."""
    return {
        file: tuple(group)
        for file, group in groupby(units, lambda unit: unit.source and unit.source.file)
    }


@dataclass(frozen=True, slots=True)
class Reading:
    """What a build tells its reader.

    ``files`` are the weight files with their stamps; ``done`` the units that an earlier run
    finished, whose bytes nobody needs; ``hashed`` the sha256 of files, by name, that it read as a
    whole; ``known`` those that need not be read as a whole at all (see `work.Work`); ``ahead`` how
    many bytes the reader may hold before they are asked for.
    """

    files: Mapping[Path, Stamp]
    done: Container[Unit] = ()
    hashed: Mapping[str, str] = field(default_factory=dict)
    known: Mapping[str, str | None] = field(default_factory=dict)
    ahead: int = 0


class WeightReader(Protocol):
    """Yields units with their bytes, and knows the sha256 of each file that it read as a whole."""

    sha256: dict[Path, str]

    def close(self) -> None:
        """Let go of what is open."""

    def read(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, NDArray[np.uint8]]]:
        """Each unit with its bytes, in the order that ``cut_units`` gives.

        Units that are done may come without.
        """


class SourceReader:
    """Yields units with their bytes, in file order, and knows each file's sha256 at the end.

    What lies between the units (headers, tensors that no target uses) is read for the hash alone,
    or held for units that are computed of it. Bytes that several tensors share, as tied ones do,
    are read for each and hashed once. Of a file whose sha256 is known only units are read that are
    not done. One that does not bear its stamp when it has been read raises ``CheckpointError``.
    """

    def __init__(self, reading: Reading, description: Description | None = None) -> None:
        self._files = reading.files
        self._done = reading.done
        self._known = reading.known
        self._description = description
        self._held = Held()
        self._open: int | None = None
        self.sha256: dict[Path, str] = {}

    def close(self) -> None:
        """Let go of what is open."""
        if self._open is not None:
            os.close(self._open)
            self._open = None

    def read(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, NDArray[np.uint8]]]:
        """Each unit with its bytes. ``units`` must be in the order ``cut_units`` gives."""
        listed = list(units)
        by_file = group_by_file(listed)
        passed = {file for file in self._files if file.name not in self._known}
        self._held = Held((unit for unit in listed if unit not in self._done), files=passed)
        for unit in by_file.pop(None, ()):
            yield unit, np.empty(0, np.uint8)
        for file in self._files:
            mine = by_file.get(file, ())
            yield from (
                self._read_parts(file, mine)
                if file.name in self._known
                else self._read_file(file, mine)
            )

    def _read_file(
        self, path: Path, units: Iterable[Unit]
    ) -> Iterator[tuple[Unit, NDArray[np.uint8]]]:
        digest = hashlib.sha256()
        with open_file(path, error=CheckpointError) as file:
            self._open = fd = os.dup(file.fileno())
        at = 0
        for unit in units:
            at = self._hash_gap(digest, path, at, unit.offset)
            if is_computed(unit, self._description):
                is_done = unit in self._done
                raw = np.empty(0, np.uint8) if is_done else self._compute(unit)
            else:
                raw = read_exactly(fd, unit.n_bytes, unit.offset, path)
                end = unit.offset + unit.n_bytes
                if end > at:
                    fresh = raw[at - unit.offset :]
                    digest.update(fresh.data)
                    self._held.pass_by(path, at, fresh)
                    at = end
            yield unit, raw
        self._hash_gap(digest, path, at, self._files[path][0])
        os.close(fd)
        self._open = None
        if stamp(path) != self._files[path]:
            raise CheckpointError(f"{path} changed while it was read; run the same command again.")
        self.sha256[path] = digest.hexdigest()

    def _read_parts(
        self, path: Path, units: Iterable[Unit]
    ) -> Iterator[tuple[Unit, NDArray[np.uint8]]]:
        """Units of a file, and nothing else of it."""
        with open_file(path, error=CheckpointError) as file:
            self._open = fd = os.dup(file.fileno())
        for unit in units:
            if unit in self._done:
                yield unit, np.empty(0, np.uint8)
            elif is_computed(unit, self._description):
                yield unit, self._compute(unit)
            else:
                yield unit, read_exactly(fd, unit.n_bytes, unit.offset, path)
        os.close(fd)
        self._open = None
        if stamp(path) != self._files[path]:
            raise CheckpointError(f"{path} changed while it was read; run the same command again.")
        if (sha256 := self._known[path.name]) is not None:
            self.sha256[path] = sha256

    def _compute(self, unit: Unit) -> NDArray[np.uint8]:
        assert self._description is not None  # noqa: S101 - there are computed tensors
        return compute(unit, self._description.rows, self._held)

    def _hash_gap(self, digest: "hashlib._Hash", path: Path, start: int, stop: int) -> int:
        """Read on to a place in the open file, which is given back, or where it is already."""
        assert self._open is not None  # noqa: S101 - only called while a file is open
        for at in range(start, stop, _GAP_CHUNK):
            data = read_exactly(self._open, min(_GAP_CHUNK, stop - at), at, path)
            digest.update(data.data)
            self._held.pass_by(path, at, data)
        return max(start, stop)


def is_computed(unit: Unit, description: Description | None) -> bool:
    """Whether a unit lies in no file."""
    return (
        description is not None
        and unit.source is not None
        and unit.source.name in description.computed
    )


def compute(unit: Unit, computed: ComputedRows, held: "Held") -> NDArray[np.uint8]:
    """The bytes of a unit that lies in no file, from what is held, or else read again."""
    assert unit.source is not None  # noqa: S101 - it has a name

    def read(name: str, first: int, count: int) -> Any:
        found = held.find(computed.range_of(name, first, count))
        return computed.read(name, first, count) if found is None else found

    raw = computed.rows(unit.source.name, unit.first, unit.rows, read)
    held.release(unit)
    return raw


class Held:
    """Bytes of the files that have been passed, and that units further on are made of.

    Where they would be more than ``most`` (`MOST_HELD`), or lie in none of ``files``, they are not
    held, and have to be read again.
    """

    def __init__(
        self,
        units: Iterable[Unit] = (),
        *,
        files: Container[Path] | None = None,
        most: int | None = None,
    ) -> None:
        self._wanted = Counter(part for unit in units for part in unit.needs)
        self._left = MOST_HELD if most is None else most
        self._bytes: dict[Range, NDArray[np.uint8]] = {}
        # By file: what will be passed, from behind, and what is being passed.
        self._coming: dict[Path, list[Range]] = defaultdict(list)
        for part in sorted(self._wanted, key=lambda part: -part.start):
            if files is None or part.file in files:
                self._coming[part.file].append(part)
        self._passing: list[Range] = []

    def pass_by(self, file: Path, at: int, data: NDArray[np.uint8]) -> None:
        """Keep what is wanted of some bytes of a file, of which those before have been passed."""
        stop = at + len(data)
        coming = self._coming.get(file)
        while coming and coming[-1].start < stop:
            part = coming.pop()
            size = part.stop - part.start
            if part.start >= at and size <= self._left:
                self._left -= size
                self._bytes[part] = np.empty(size, np.uint8)
                self._passing.append(part)
        for part in self._passing:
            start, end = max(part.start, at), min(part.stop, stop)
            if start < end:
                self._bytes[part][start - part.start : end - part.start] = data[
                    start - at : end - at
                ]
        self._passing = [part for part in self._passing if part.stop > stop]

    def find(self, part: Range) -> NDArray[np.uint8] | None:
        """Those bytes, if they are held."""
        return self._bytes.get(part)

    def release(self, unit: Unit) -> None:
        """Let go of what no later unit needs."""
        for part in unit.needs:
            self._wanted[part] -= 1
            if not self._wanted[part] and (data := self._bytes.pop(part, None)) is not None:
                self._left += len(data)


class RowsReader:
    """Yields units of weights that do not lie in their files as they are: dequantized, joined.

    ``read_rows(name, first, count)`` gives the bytes of rows of a matrix. The files are hashed by
    themselves, afterwards.
    """

    def __init__(
        self,
        reading: Reading,
        read_rows: RowReader,
    ) -> None:
        self._files = reading.files
        self._read_rows = read_rows
        self.sha256: dict[Path, str] = {}

    def close(self) -> None:
        """Nothing stays open."""

    def read(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, NDArray[np.uint8]]]:
        """Each unit with its bytes."""
        for unit in units:
            yield unit, read_unit(unit, self._read_rows)
        for path, known in self._files.items():
            self.sha256[path] = hash_source(path, known)


def hash_source(path: Path, known: Stamp) -> str:
    """The sha256 of a source file that bears a stamp.

    Raises:
        CheckpointError: it does not bear it any more.

    """
    with open_file(path, error=CheckpointError) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if stamp(path) != known:
        raise CheckpointError(f"{path} changed while it was read; run the same command again.")
    return sha256


def read_unit(unit: Unit, read_rows: RowReader) -> NDArray[np.uint8]:
    """The bytes of one unit by a function that gives rows; none for computed values."""
    if unit.source is None:
        return np.empty(0, np.uint8)
    return read_rows(unit.source.name, unit.first, unit.rows)


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {error.strerror}; download it again.")
