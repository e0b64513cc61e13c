"""Artifacts whose shards lie on the disks of a cluster's nodes, where these share none."""

import json
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.building.cluster import calls, tasks
from quantkit.building.output import PartialArtifact, remove
from quantkit.core.documents import decode
from quantkit.core.errors import FileError, OutputError, PlaceLostError
from quantkit.core.files import read_file
from quantkit.core.writing import replace_file
from quantkit.formats.layout import Layout


@dataclass(frozen=True, slots=True)
class Storage:
    """A disk that some nodes, given by their ids, see in the same place."""

    name: str
    nodes: tuple[str, ...]
    processors: int


def is_shared(out: Path) -> bool:
    """Whether all nodes see the output folder that this process sees."""
    # A name that no node has looked for before: network file systems remember what was not there.
    token = out / f"{tasks.STORAGE}.{uuid.uuid4().hex}"
    token.touch()
    try:
        return all(found for _, found in calls.ask(calls.live_ids(), tasks.sees, token))
    finally:
        token.unlink()


def find_storages(out: Path) -> list[Storage]:
    """The disks that nodes see under a folder's name, each of which gets a name of its own."""
    processors = {node["NodeID"]: int(node["Resources"]["CPU"]) for node in calls.live_nodes()}
    nodes: dict[str, list[str]] = defaultdict(list)
    for node, name in calls.ask(list(processors), tasks.name_storage, out):
        nodes[name].append(node)
    return [
        Storage(name, tuple(nodes[name]), sum(processors[node] for node in nodes[name]))
        for name in sorted(nodes)
    ]


class ScatteredArtifact(PartialArtifact):
    """A split GGUF, each shard of which lies on one storage. Which one is noted in the folder here.

    Nothing of it is opened or written in this process.
    """

    is_here = False

    def __init__(self, folder: Path, layout: Layout, storages: Sequence[Storage]) -> None:
        super().__init__(folder.absolute(), layout)
        self._storages = {storage.name: storage for storage in storages}
        self._note = self.final.with_name(f".{self.final.name}.shards")
        self._known = self._read_note()
        self.storage_of = self._divide()
        self.hosts: dict[str, str] = {}  # of storages

    def _read_note(self) -> dict[str, str]:
        """Where an earlier run put shards that are still there: storages by file name."""
        try:
            noted = decode(read_file(self._note, follow=False), dict[str, str], self._note)
        except FileError:
            return {}
        there = {name: self._ask(name, tasks.sizes_of, self.partial) for name in self._storages}
        return {
            file.name: noted[file.name]
            for file in self.layout.files
            if there.get(noted.get(file.name, ""), {}).get(file.name) == file.n_bytes
        }

    def _divide(self) -> list[str]:
        """A storage for every file: neighbours together, as many as it has processors.

        Artifacts that are divided alike need most source rows on one storage only.
        """
        total = sum(storage.processors for storage in self._storages.values())
        count, chosen = len(self.layout.files), []
        for number, file in enumerate(self.layout.files):
            left = (number + 0.5) / count * total
            for storage in self._storages.values():
                left -= storage.processors
                if left < 0:
                    break
            chosen.append(self._known.get(file.name, storage.name))
        return chosen

    @property
    def missing(self) -> int:
        """Nothing: every node looks after its own disk."""
        return 0

    def absent(self) -> set[int]:
        """The files that no storage has."""
        files = self.layout.files
        return {number for number, file in enumerate(files) if file.name not in self._known}

    def discard(self) -> None:
        """Delete what there is of it, on every storage."""
        for name in self._storages:
            self._ask(name, remove, self.partial)
        remove(self._note)

    def open(self) -> None:
        """Make the files on their storages."""
        noted = {file.name: name for name in self._storages for file in self._files_on(name)}
        replace_file(self._note, json.dumps(noted).encode())
        for name in self._storages:
            sizes = [(f.name, f.n_bytes, f.name in self._known) for f in self._files_on(name)]
            self.hosts[name] = self._ask(name, tasks.make_files, self.partial, self.final, sizes)

    def write_headers(self) -> None:
        """Write the headers, where the files are."""
        for name in self._storages:
            headers = [(file.name, file.header) for file in self._files_on(name)]
            self._ask(name, tasks.write_headers, self.partial, headers)

    def publish(self) -> Path:
        """Rename on every storage; the folder's path there."""
        for name in self._storages:
            self._ask(name, tasks.rename, self.partial, self.final)
        remove(self._note)
        return self.final

    def where(self, file: int) -> dict[str, str]:
        """The host on whose disk a file lies."""
        return {"node": self.hosts[self.storage_of[file]]}

    def node_of(self, file: int) -> str:
        """A node that sees a file.

        Raises:
            PlaceLostError: there is none any more.

        """
        alive = calls.live_ids()
        name = self.storage_of[file]
        nodes = [node for node in self._storages[name].nodes if node in alive]
        if not nodes:
            raise PlaceLostError(
                f"The node with {self.layout.files[file].name} is lost; run the same command to "
                "rebuild its shards."
            )
        return nodes[file % len(nodes)]

    def _files_on(self, storage: str) -> list[Any]:
        """The layout's files that are on a storage."""
        return [
            file
            for file, name in zip(self.layout.files, self.storage_of, strict=True)
            if name == storage
        ]

    def _ask(self, storage: str, function: Any, *arguments: Any) -> Any:
        """What a function returns on some node of a storage."""
        for _, answer in calls.ask(self._storages[storage].nodes[:1], function, *arguments):
            return answer
        raise PlaceLostError("A node of the cluster was lost; run the same command to resume.")


def is_held(out: Path, entry: Mapping[str, Any]) -> bool:
    """Whether the nodes have every file of a finished artifact in such folders."""
    files = [(Path(file["name"]), file["bytes"]) for file in entry.get("files", ())]
    if not files or not all("node" in file for file in entry["files"]):
        return False
    folder = out.absolute() / files[0][0].parent
    found: dict[str, int] = {}
    for _, sizes in calls.ask(calls.live_ids(), tasks.sizes_of, folder):
        found |= sizes
    return all(found.get(path.name) == size for path, size in files)


def require_shards(layouts: Sequence[Layout], out: Path) -> None:
    """Refuse what cannot be scattered.

    Raises:
        OutputError: an artifact is one file, or no GGUF.

    """
    for layout in layouts:
        if layout.folder in (None, layout.opened):
            raise OutputError(
                f"Not all nodes of the cluster share {out}, and {layout.name} cannot be divided "
                "among their disks; choose a shared folder with -o, or GGUF quants and a "
                "--shard-size that splits them."
            )
