"""What a build has finished, on disk, so that a killed one resumes.

One JSON document per line. The first line identifies the build: its source and kernel, and its
artifacts by partial name, each with what else its bytes depend on. The others record units whose
bytes were synced before the line was written, with CRC-32s of what each artifact got (null where
it has got nothing yet), which the final verification reads back, source files that were read as a
whole with their sha256, and files that were sent elsewhere with theirs. A line cut short by a crash
is ignored.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any, TypeAlias

from quantkit.building.output import PARTIAL
from quantkit.core.documents import parse_object
from quantkit.core.errors import FileError, OutputError
from quantkit.core.files import read_file
from quantkit.core.names import is_plain_name
from quantkit.core.writing import open_to_append, replace_file

NAME = ".quantkit-journal"
_HASHED, _SENT = "hashed", "sent"
_MOST_BYTES = 2**29
_UNIT = re.compile("[0-9]{1,9}")
_SUM = re.compile("[0-9a-f]{64}")

# What a unit gave: per artifact, a CRC-32 of each piece; None where it was not encoded for one.
Record: TypeAlias = list[list[int] | None]


class Journal:
    """An append-only record of units: per unit and artifact, a CRC-32 of each piece.

    It serves every build of the same source in the same way, whichever artifacts that has:
    ``finished`` has those of this build alone, in their order. What an earlier run did for others
    is kept (``left``) until this build is finished.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], artifacts: Mapping[str, Any]
    ) -> None:
        self.path = folder / NAME
        self._identity = dict(identity)
        self._artifacts = dict(artifacts)
        self.finished: dict[int, Record] = {}
        self.hashed: dict[str, str] = {}
        self.sent: dict[str, str] = {}
        self.left: dict[str, Any] = {}
        self.lost: dict[str, int] = {}
        """Units that an earlier run finished for nothing, by partial name."""
        self._left: dict[int, Record] = {}
        self._lock = Lock()

    @property
    def done(self) -> set[int]:
        """The units that are finished for every artifact."""
        return {index for index, crcs in self.finished.items() if None not in crcs}

    def has(self, number: int) -> bool:
        """Whether any unit is finished for an artifact."""
        return any(crcs[number] is not None for crcs in self.finished.values())

    def resume(self) -> None:
        """Take over what earlier runs did that serves this build."""
        header, *lines = _read_lines(self.path) or [{}]
        earlier = _mapping(header.pop("artifacts", None))
        serves = header == self._identity
        records: dict[int, Record] = {}
        for line in lines:
            if serves:
                self.hashed |= _sums(line.pop(_HASHED, None))
                self.sent |= _sums(line.pop(_SENT, None))
            records |= {
                int(unit): crcs
                for unit, crcs in line.items()
                if _UNIT.fullmatch(unit) and _is_record(crcs, len(earlier))
            }
        columns = {name: column for column, name in enumerate(earlier) if _is_partial(name)}
        ours = {
            name: column
            for name, column in columns.items()
            if serves and self._artifacts.get(name) == earlier[name]
        }
        self.left = {
            name: earlier[name]
            for name in columns
            if serves and name not in self._artifacts and (self.path.parent / name).exists()
        }
        for unit, crcs in records.items():
            record = [crcs[ours[name]] if name in ours else None for name in self._artifacts]
            if any(piece is not None for piece in record):
                self.finished[unit] = record
            if self.left:
                self._left[unit] = [crcs[columns[name]] for name in self.left]
        for name, column in columns.items():
            if name not in ours and name not in self.left and (self.path.parent / name).exists():
                self.lost[name] = sum(crcs[column] is not None for crcs in records.values())

    def start(self) -> None:
        """Write the record anew, durably: what is finished so far, without what was lost."""
        units = {index: self._record(index) for index in {*self.finished, *self._left}}
        first = {"artifacts": {**self._artifacts, **self.left}, **self._identity}
        begun: dict[Any, Any] = {_HASHED: self.hashed, _SENT: self.sent, **units}
        replace_file(self.path, _line(first) + _line(begun), self.path.with_name(NAME + PARTIAL))

    def record(
        self,
        units: Iterable[tuple[int, Sequence[list[int] | None]]],
        hashed: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Append finished units, whose bytes must have been synced, and files' sha256 by name."""
        batch = {index: list(crcs) for index, crcs in units}
        new = {name: digest for name, digest in hashed.items() if name not in self.hashed}
        if not batch and not new:
            return
        self.finished.update(batch)
        self.hashed.update(new)
        lines: dict[Any, Any] = {index: self._record(index) for index in batch}
        self._append({_HASHED: new, **lines} if new else lines)

    def record_sent(self, name: str, sha256: str) -> None:
        """Append that a file lies elsewhere now."""
        self._append({_SENT: {name: sha256}})
        self.sent[name] = sha256

    def forget(self, number: int, units: Iterable[int] | None = None) -> None:
        """Let go of what was done for an artifact, as far as these units go (None: all)."""
        for index in list(self.finished if units is None else units):
            if (crcs := self.finished.get(index)) is None:
                continue
            crcs[number] = None
            if all(piece is None for piece in crcs):
                del self.finished[index]

    def forget_files(self) -> None:
        """Let go of which files were read as a whole, and which were sent."""
        self.hashed.clear()
        self.sent.clear()

    def drop_left(self) -> None:
        """Let go of what an earlier run did for artifacts that this build has not."""
        self.left.clear()
        self._left.clear()

    def left_units(self) -> Iterator[tuple[str, int]]:
        """How many units an earlier run finished for each artifact that this build has not."""
        for column, name in enumerate(self.left):
            yield name, sum(crcs[column] is not None for crcs in self._left.values())

    def remove(self) -> None:
        """Delete the record: the build is finished, or given up."""
        self.path.unlink(missing_ok=True)

    def _append(self, document: Mapping[Any, Any]) -> None:
        with self._lock, open_to_append(self.path) as file:
            file.write(_line(document))
            file.flush()
            os.fsync(file.fileno())

    def _record(self, index: int) -> Record:
        """What a unit gave to the artifacts of this build, and to those that were left."""
        ours = self.finished.get(index, [None] * len(self._artifacts))
        return [*ours, *self._left.get(index, [None] * len(self.left))]


def partial_paths(folder: Path) -> list[Path]:
    """The unfinished files that the journal in a folder answers for, whether or not they exist."""
    lines = _read_lines(folder / NAME)
    names = _mapping(lines[0].get("artifacts")) if lines else {}
    # Nobody's journal, however it came here, makes a build delete anything else.
    return [folder / name for name in names if _is_partial(name)]


def remove_stale(folder: Path) -> None:
    """Delete a journal whose files are all published; its build was killed right after that."""
    if not any(path.exists() for path in partial_paths(folder)):
        (folder / NAME).unlink(missing_ok=True)


def _line(document: Mapping[Any, Any]) -> bytes:
    # The leading newline ends a line that a crash cut short, so that it spoils only itself.
    return b"\n" + json.dumps(document).encode()


def _mapping(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _sums(found: Any) -> dict[str, str]:
    """The sha256 by name in a journal's entry."""
    sums = _mapping(found).items()
    return {name: sum_ for name, sum_ in sums if isinstance(sum_, str) and _SUM.fullmatch(sum_)}


def _is_partial(name: str) -> bool:
    """Whether a name in a journal is that of an unfinished artifact beside it."""
    return is_plain_name(name) and name.endswith(PARTIAL)


def _is_record(found: Any, count: int) -> bool:
    """Whether a journal's entry is what a unit gave to so many artifacts."""
    return (
        isinstance(found, list)
        and len(found) == count
        and all(
            pieces is None or (isinstance(pieces, list) and all(type(crc) is int for crc in pieces))
            for pieces in found
        )
    )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_symlink() and not path.exists():
        return []
    raw = read_file(path, most=_MOST_BYTES, error=OutputError, fix="remove it", follow=False)
    lines = []
    for line in filter(None, raw.split(b"\n")):
        with contextlib.suppress(FileError):
            lines.append(parse_object(line, path))
    return lines
