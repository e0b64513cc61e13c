"""What a build has finished, on disk, so that a killed one resumes.

One JSON document per line. The first line identifies the build: its source, plans and kernel. The
others record units whose bytes were synced before the line was written, with a CRC-32 of what
each artifact got, which the final verification reads back. A line cut short by a crash is ignored.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

NAME = ".quantkit-journal"


class Journal:
    """An append-only record of finished units: unit index -> CRC-32 per artifact."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        self._identity = dict(identity)
        self.finished: dict[int, list[int]] = {}

    def resume(self) -> bool:
        """Take over what an earlier run of the same build finished; False if there is none."""
        lines = _read_lines(self.path)
        if not lines or lines[0] != self._identity:
            return False
        for line in lines[1:]:
            self.finished.update({int(unit): crcs for unit, crcs in line.items()})
        return True

    def start(self) -> None:
        """Begin anew, durably."""
        self.finished.clear()
        with self.path.open("w", encoding="utf-8") as file:
            _append(file.fileno(), self._identity)

    def record(self, units: Iterable[tuple[int, list[int]]]) -> None:
        """Append finished units. Their bytes must have been synced."""
        batch = dict(units)
        if not batch:
            return
        with self.path.open("a", encoding="utf-8") as file:
            _append(file.fileno(), batch)
        self.finished.update(batch)

    def remove(self) -> None:
        """Delete the record: the build is finished, or given up."""
        self.path.unlink(missing_ok=True)


def partial_names(folder: Path) -> list[str]:
    """Names of the unfinished files that a journal left in a folder answers for."""
    lines = _read_lines(folder / NAME)
    return [str(name) for name in lines[0].get("partials", ())] if lines else []


def _append(fd: int, document: Mapping[Any, Any]) -> None:
    # The leading newline ends a line that a crash cut short, so that it spoils only itself.
    os.write(fd, b"\n" + json.dumps(document).encode())
    os.fsync(fd)


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
