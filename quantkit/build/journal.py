"""What a build has finished, on disk, so that a killed one resumes.

One JSON document per line. The first line identifies the build: its source and kernel, and its
artifacts by partial name, each with what else its bytes depend on. The others record units whose
bytes were synced before the line was written, with CRC-32s of what each artifact got (null where
it has got nothing yet), which the final verification reads back, source files that were read as a
whole with their sha256, and files that were sent elsewhere with theirs. A line cut short by a crash
is ignored.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any, BinaryIO, TypeAlias

from quantkit.build.output import PARTIAL

NAME = ".quantkit-journal"
_HASHED, _SENT = "hashed", "sent"

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
                self.hashed |= _mapping(line.pop(_HASHED, None))
                self.sent |= _mapping(line.pop(_SENT, None))
            records |= {
                int(unit): crcs
                for unit, crcs in line.items()
                if unit.isdecimal() and _is_record(crcs, len(earlier))
            }
        columns = {name: column for column, name in enumerate(earlier)}
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
        temporary = self.path.with_name(NAME + PARTIAL)
        units = {index: self._line(index) for index in {*self.finished, *self._left}}
        with temporary.open("wb") as file:
            _append(file, {"artifacts": {**self._artifacts, **self.left}, **self._identity})
            _append(file, {_HASHED: self.hashed, _SENT: self.sent, **units})
        temporary.replace(self.path)

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
        lines: dict[Any, Any] = {index: self._line(index) for index in batch}
        with self._lock, self.path.open("ab") as file:
            _append(file, {_HASHED: new, **lines} if new else lines)

    def record_sent(self, name: str, sha256: str) -> None:
        """Append that a file lies elsewhere now."""
        with self._lock, self.path.open("ab") as file:
            _append(file, {_SENT: {name: sha256}})
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

    def _line(self, index: int) -> Record:
        """What a unit gave to the artifacts of this build, and to those that were left."""
        ours = self.finished.get(index, [None] * len(self._artifacts))
        return [*ours, *self._left.get(index, [None] * len(self.left))]


def partial_paths(folder: Path) -> list[Path]:
    """The unfinished files that the journal in a folder answers for, whether or not they exist."""
    lines = _read_lines(folder / NAME)
    names = lines[0].get("artifacts", ()) if lines else ()
    # Nobody's journal, however it came here, makes a build delete anything else.
    return [folder / name for name in names if Path(name).name == name and name.endswith(PARTIAL)]


def remove_stale(folder: Path) -> None:
    """Delete a journal whose files are all published; its build was killed right after that."""
    if not any(path.exists() for path in partial_paths(folder)):
        (folder / NAME).unlink(missing_ok=True)


def _append(file: BinaryIO, document: Mapping[Any, Any]) -> None:
    # The leading newline ends a line that a crash cut short, so that it spoils only itself.
    file.write(b"\n" + json.dumps(document).encode())
    file.flush()
    os.fsync(file.fileno())


def _mapping(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


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
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.split("\n"):
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict):
            lines.append(document)
    return lines
