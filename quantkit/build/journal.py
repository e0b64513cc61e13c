"""What a build has finished, on disk, so that a killed one resumes.

One JSON document per line. The first line identifies the build: its source and kernel, and its
artifacts by partial name with the hash of each one's plan. The others record units whose bytes
were synced before the line was written, with CRC-32s of what each artifact got, which the final
verification reads back, source files that were read as a whole with their sha256, and files that
were sent elsewhere with theirs. A line cut short by a crash is ignored.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any, BinaryIO

from quantkit.build.output import PARTIAL

NAME = ".quantkit-journal"
_HASHED, _SENT = "hashed", "sent"


class Journal:
    """An append-only record of finished units: per unit and artifact, a CRC-32 of each piece."""

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], artifacts: Mapping[str, str]
    ) -> None:
        self.path = folder / NAME
        self._identity = dict(identity)
        self._artifacts = dict(artifacts)
        self.finished: dict[int, list[list[int]]] = {}
        self.hashed: dict[str, str] = {}
        self.sent: dict[str, str] = {}
        self._lock = Lock()

    def resume(self) -> None:
        """Take over what an earlier run of the same build finished, if there was one.

        That run may have had more artifacts than this one: those that it got to publish.
        """
        header, *lines = _read_lines(self.path) or [{}]
        earlier = header.pop("artifacts", {})
        if header != self._identity or not self._artifacts.items() <= earlier.items():
            return
        columns = [list(earlier).index(name) for name in self._artifacts]
        for line in lines:
            self.hashed |= line.pop(_HASHED, {})
            self.sent |= line.pop(_SENT, {})
            for unit, crcs in line.items():
                self.finished[int(unit)] = [crcs[column] for column in columns]

    def start(self) -> None:
        """Write the record anew, durably: what is finished so far, for these artifacts alone."""
        temporary = self.path.with_name(NAME + PARTIAL)
        with temporary.open("wb") as file:
            _append(file, {"artifacts": self._artifacts, **self._identity})
            _append(file, {_HASHED: self.hashed, _SENT: self.sent, **self.finished})
        temporary.replace(self.path)

    def record(
        self,
        units: Iterable[tuple[int, list[list[int]]]],
        hashed: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Append finished units, whose bytes must have been synced, and files' sha256 by name."""
        batch = dict(units)
        new = {name: digest for name, digest in hashed.items() if name not in self.hashed}
        if not batch and not new:
            return
        with self._lock, self.path.open("ab") as file:
            _append(file, {_HASHED: new, **batch} if new else batch)
        self.finished.update(batch)
        self.hashed.update(new)

    def record_sent(self, name: str, sha256: str) -> None:
        """Append that a file lies elsewhere now."""
        with self._lock, self.path.open("ab") as file:
            _append(file, {_SENT: {name: sha256}})
        self.sent[name] = sha256

    def forget(self) -> None:
        """Let go of everything that an earlier run finished."""
        for known in (self.finished, self.hashed, self.sent):
            known.clear()

    def remove(self) -> None:
        """Delete the record: the build is finished, or given up."""
        self.path.unlink(missing_ok=True)


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
