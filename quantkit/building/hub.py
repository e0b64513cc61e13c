"""Reading a checkpoint's weights from the Hub, each byte once, without storing them."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.building.kept import KeptFile, KeptSource
from quantkit.building.source import (
    Held,
    Reading,
    compute,
    group_by_file,
    is_computed,
    read_exactly,
)
from quantkit.building.units import Unit
from quantkit.checkpoint.ahead import Range, ReadAhead
from quantkit.checkpoint.checkpoint import Description
from quantkit.checkpoint.remote import RemoteRepo, fetch_range
from quantkit.core.errors import CheckpointError, SourceChangedError
from quantkit.core.files import open_file
from quantkit.core.tensors import SourceTensor

_CHUNK = 8 * 2**20


@dataclass(frozen=True, slots=True)
class _File:
    """How one weight file is read.

    ``whole``: from front to back, and hashed; else only units that are not done. The first
    ``n_here`` bytes come from the local file ``here``, the rest from the Hub.
    """

    path: Path
    n_bytes: int
    units: tuple[Unit, ...]
    whole: bool
    here: Path | None = None
    n_here: int = 0


class HubReader:
    """Yields units with their bytes, in file order, over several connections.

    A file of which no unit is done is read as a whole, and its sha256 must be the one that the Hub
    lists; bytes that tied tensors share come once. Of others only units that are not done are read;
    those that are come without bytes. What is in the Hub's cache, or kept already, is not asked for
    again.
    """

    def __init__(
        self,
        repo: RemoteRepo,
        reading: Reading,
        kept: KeptSource | None = None,
        description: Description | None = None,
    ) -> None:
        self._repo = repo
        self._description = description
        self._held = Held()
        self._reading = reading
        self._kept = kept
        self._stack = ExitStack()
        self._ahead: ReadAhead | None = None
        self.sha256: dict[Path, str] = {}

    def close(self) -> None:
        """Stop asking, and close the files."""
        self._stack.close()

    def read(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, NDArray[np.uint8]]]:
        """Each unit with its bytes. ``units`` must be in the order ``cut_units`` gives."""
        listed = list(units)
        by_file = group_by_file(listed)
        for unit in by_file.pop(None, ()):
            yield unit, np.empty(0, np.uint8)
        files = [self._plan(path, by_file.get(path, ())) for path in self._reading.files]
        ranges = [part for file in files for part in self._ranges(file)]
        passed = {file.path for file in files if file.whole}  # by what reads them whole
        self._held = Held((unit for unit in listed if unit not in self._reading.done), files=passed)
        ahead = ReadAhead(self._repo, ranges, self._reading.ahead)
        self._ahead = self._stack.enter_context(closing(ahead))
        for file in files:
            yield from self._read_whole(file) if file.whole else self._read_rest(file)

    def fetch(self) -> Iterator[int]:
        """Read all files, for keeping them; yields how many bytes are there so far."""
        done = 0
        pieces = [
            Unit(0, 0, 0, 0, SourceTensor("", "", (), path, 0, size), at, min(_CHUNK, size - at))
            for path, (size, _) in self._reading.files.items()
            for at in range(0, size, _CHUNK)
        ]
        for piece, _ in self.read(pieces):
            done += piece.n_bytes
            yield done

    def _plan(self, path: Path, units: tuple[Unit, ...]) -> _File:
        size = self._repo.sizes[path.name]
        if self._kept is not None and (final := self._kept.path(path.name)).is_file():
            return _File(path, size, units, True, final, size)
        if path.is_file():
            return _File(path, size, units, True, path, size)
        if self._kept is not None:
            return _File(path, size, units, True, *self._kept.begun(path.name))
        is_known = path.name in self._reading.hashed or path.name in self._reading.known
        whole = not is_known and not any(unit in self._reading.done for unit in units)
        return _File(path, size, units, whole)

    def _ranges(self, file: _File) -> Iterator[Range]:
        """What to ask the Hub for."""
        if file.whole:
            if file.n_here < file.n_bytes:
                yield Range(file.path.name, file.n_here, file.n_bytes)
            return
        start = end = 0
        for unit in file.units:
            if unit in self._reading.done or is_computed(unit, self._description):
                continue
            if unit.offset != end:
                if start < end:
                    yield Range(file.path.name, start, end)
                start = unit.offset
            end = unit.offset + unit.n_bytes
        if start < end:
            yield Range(file.path.name, start, end)

    def _read_rest(self, file: _File) -> Iterator[tuple[Unit, NDArray[np.uint8]]]:
        assert self._ahead is not None  # noqa: S101 - read() made it
        for unit in file.units:
            if is_computed(unit, self._description):
                yield unit, self._compute(unit)
                continue
            is_done = unit in self._reading.done
            yield unit, np.empty(0, np.uint8) if is_done else self._ahead.take(unit.n_bytes)
        known = {**self._reading.known, **self._reading.hashed}  # by those who read it as a whole
        if (sha256 := known.get(file.path.name)) is not None:
            self.sha256[file.path] = sha256

    def _read_whole(self, file: _File) -> Iterator[tuple[Unit, NDArray[np.uint8]]]:
        with ExitStack() as stack:
            keep = None
            if self._kept is not None and not self._kept.path(file.path.name).is_file():
                keep = stack.enter_context(closing(self._kept.open(file.path.name)))
            stream = _Stream(file, self._ahead, keep, self._held)
            stack.callback(stream.close)
            held: list[NDArray[np.uint8]] = []
            for unit, after in zip(file.units, (*file.units[1:], None), strict=True):
                if is_computed(unit, self._description):
                    stream.skip(unit.offset)
                    yield unit, self._compute(unit)
                    continue
                if not held:
                    stream.skip(unit.offset)
                    is_behind = unit.offset < stream.at
                    held.append(
                        self._read_again(file, unit) if is_behind else stream.take(unit.n_bytes)
                    )
                # Tied tensors are the same bytes, of which a slab is needed twice in turn.
                is_shared = after is not None and _place(after) == _place(unit)
                yield unit, held[0] if is_shared else held.pop()
            stream.skip(file.n_bytes)
            digest = stream.digest.hexdigest()
            if keep is not None:
                keep.finish(digest)
        known = self._repo.hashes.get(file.path.name)
        if known not in (None, digest):
            where = f"{file.here}" if file.n_here == file.n_bytes else "what was read"
            raise SourceChangedError(
                f"The sha256 of {file.path.name} of {self._repo} is not the one that the Hub lists "
                f"({where} has {digest[:12]} instead of {str(known)[:12]}); "
                + (
                    "delete that file and run the same command again."
                    if file.n_here == file.n_bytes
                    else "run the same command again, which starts over."
                )
            )
        self.sha256[file.path] = digest

    def _compute(self, unit: Unit) -> NDArray[np.uint8]:
        """The bytes of a unit that lies in no file, unless nobody needs it."""
        assert self._description is not None  # noqa: S101 - there are computed tensors
        if unit in self._reading.done:
            return np.empty(0, np.uint8)
        return compute(unit, self._description.rows, self._held)

    def _read_again(self, file: _File, unit: Unit) -> NDArray[np.uint8]:
        """Bytes that lie, in part at least, before the place where the stream is."""
        end = unit.offset + unit.n_bytes
        if file.here is not None and end <= file.n_here:
            with open_file(file.here, error=CheckpointError) as here:
                return read_exactly(here.fileno(), unit.n_bytes, unit.offset, file.here)
        return np.frombuffer(fetch_range(self._repo, file.path.name, unit.offset, end), np.uint8)


def _place(unit: Unit) -> tuple[int, int]:
    """Where a unit of a file lies in it."""
    return unit.offset, unit.n_bytes


class _Stream:
    """The bytes of one file from front to back, hashed, and kept as far as they are not yet."""

    def __init__(
        self, file: _File, ahead: ReadAhead | None, keep: KeptFile | None, held: Held
    ) -> None:
        self.digest = hashlib.sha256()
        self._file = file
        self._ahead = ahead
        self._keep = keep
        self._held = held
        self.at = 0
        self._fd = None
        if file.here and file.n_here:
            with open_file(file.here, error=CheckpointError) as here:
                self._fd = os.dup(here.fileno())

    def take(self, n_bytes: int) -> NDArray[np.uint8]:
        """The next bytes."""
        here = min(n_bytes, max(0, self._file.n_here - self.at))
        parts = []
        if self._fd is not None and here:
            assert self._file.here is not None  # noqa: S101 - it was opened
            parts.append(read_exactly(self._fd, here, self.at, self._file.here))
        if here < n_bytes:
            assert self._ahead is not None  # noqa: S101 - the reader made it
            parts.append(self._ahead.take(n_bytes - here))
        data = parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, np.uint8)])
        self.digest.update(data.data)
        if self._keep is not None:
            self._keep.write(data.data[max(0, self._keep.n_bytes - self.at) :])
        self._held.pass_by(self._file.path, self.at, data)
        self.at += n_bytes
        return data

    def skip(self, to: int) -> None:
        """Read on to a place in the file, for the hash."""
        while self.at < to:
            self.take(min(_CHUNK, to - self.at))

    def close(self) -> None:
        """Close the local file."""
        if self._fd is not None:
            os.close(self._fd)
