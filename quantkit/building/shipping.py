"""Files that leave while the build goes on, so that the disk need not hold all of them.

A shard of a split GGUF is finished when the last slab that goes into it is written. Then it is read
back and sent, and its blocks are given back: what stays is a file of its size with its header and
nothing behind that, under its partial name.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from quantkit.building import manifest
from quantkit.building.journal import Journal
from quantkit.building.output import PARTIAL, PartialArtifact, remove
from quantkit.building.readback import read_back, written_to
from quantkit.building.units import Unit
from quantkit.core.errors import NoSpaceError
from quantkit.core.units import format_size
from quantkit.core.writing import write_at_start
from quantkit.formats.layout import Layout

STAGED = f".published{PARTIAL}"
"""The folder, in the output folder, of what was sent: headers alone, for the card to be made of."""


@dataclass(frozen=True, slots=True)
class Shipping:
    """Where finished files go. ``send(file, path there, sha256)`` returns when one is safe.

    ``max_disk`` is the most bytes that files may take up here, None for what the disk has.
    """

    to: str
    send: Callable[[Path, str, str], None]
    max_disk: int | None = None


class ShardSender:
    """The shards of one build, each sent once all of its slabs are written, one at a time."""

    def __init__(
        self,
        shipping: Shipping,
        artifacts: Sequence[PartialArtifact],
        units: Sequence[Unit],
        journal: Journal,
    ) -> None:
        self._shipping = shipping
        self._artifacts = artifacts
        self._units = units
        self._journal = journal
        self._units_of: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, artifact in enumerate(artifacts):
            if not leaves_by_shards(artifact.layout):
                continue
            for index, unit in enumerate(units):
                (place,) = artifact.layout.places(unit.target, unit.row, unit.rows)
                self._units_of[number, place.file].append(index)
        self._due: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for key, indices in self._units_of.items():
            self._due[indices[-1]].append(key)
        self._pool = ThreadPoolExecutor(1, "send")
        self._sending: Future[None] | None = None
        self._lock = Lock()
        self._on_disk = self.on_disk
        self._limit = shipping.max_disk

    @property
    def on_disk(self) -> int:
        """Bytes of disk that the unfinished files take up."""
        paths = [path for artifact in self._artifacts for path in artifact.paths]
        return sum(path.stat().st_blocks * 512 for path in paths if path.is_file())

    def check(self, free: int) -> None:
        """Make do with so many free bytes.

        Raises:
            NoSpaceError: the limit that was asked for is too low.

        """
        needed = self.peak()
        if self._limit is not None and needed > self._limit:
            raise NoSpaceError(
                f"--max-disk {format_size(self._limit)} is less than the {format_size(needed)} "
                f"({needed} bytes) of shards that are unfinished at a time; give more, or use a "
                "smaller --shard-size or fewer quants."
            )
        available = self.on_disk + free
        self._limit = available if self._limit is None else min(self._limit, available)

    def close(self) -> None:
        """Wait for the shard that is being sent, and send no more."""
        self._pool.shutdown(cancel_futures=True)

    def due(self, index: int) -> list[tuple[int, int]]:
        """The shards (artifact, file) that a unit completes and that were not sent yet."""
        return [key for key in self._due.get(index, ()) if self._name(*key) not in self.sent]

    @property
    def sent(self) -> Mapping[str, str]:
        """The sha256 of what was sent, by its path there."""
        return self._journal.sent

    def start(self, keys: Sequence[tuple[int, int]]) -> None:
        """Send shards whose units are in the journal, when those before them are gone."""
        self.finish()
        self._sending = self._pool.submit(self._send, keys)

    def finish(self) -> None:
        """Wait for what is being sent, and raise what went wrong."""
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.result()

    def digests(self, artifact: PartialArtifact) -> list[str] | None:
        """The sha256 of the shards of an artifact that was sent; None for any other."""
        number = self._artifacts.index(artifact)
        names = [self._name(number, file) for file in range(len(artifact.layout.files))]
        return [self.sent[name] for name in names] if set(names) <= self.sent.keys() else None

    def make_room(self, index: int) -> None:
        """Wait until what is being sent is gone, where a unit has no room beside it."""
        known = self._journal.finished.get(index)
        n_bytes = self._bytes_of(index, lambda number: known is None or known[number] is None)
        assert self._limit is not None  # noqa: S101 - checked before the first unit
        if self._on_disk + n_bytes > self._limit:
            self.finish()
        with self._lock:
            self._on_disk += n_bytes

    def peak(self) -> int:
        """The most bytes of files that must be on the disk at a time."""
        now = most = sum(len(f.header) for a in self._artifacts for f in a.layout.files)
        for index in range(len(self._units)):
            now += self._bytes_of(index, lambda _: True)
            most = max(most, now)
            now -= sum(self._artifacts[a].layout.files[f].n_bytes for a, f in self.due(index))
        return most

    def _bytes_of(self, index: int, chosen: Callable[[int], bool]) -> int:
        """Bytes that a unit gives to those files of chosen artifacts that were not sent yet."""
        unit = self._units[index]
        return sum(
            place.n_bytes
            for number, artifact in enumerate(self._artifacts)
            if chosen(number)
            for place in artifact.layout.places(unit.target, unit.row, unit.rows)
            if self._name(number, place.file) not in self.sent
        )

    def _name(self, number: int, file: int) -> str:
        layout = self._artifacts[number].layout
        files = layout.files
        return f"{layout.folder}/{files[file].name}" if file < len(files) else ""

    def _send(self, keys: Iterable[tuple[int, int]]) -> None:
        for number, index in keys:
            artifact, name = self._artifacts[number], self._name(number, index)
            path, file = artifact.paths[index], artifact.layout.files[index]
            artifact.write_header(index)
            indices = self._units_of[number, index]
            finished = self._journal.finished
            written = written_to(artifact, number, self._units, finished, indices)
            digest = read_back(path, file.header, file.n_bytes, written[index])
            self._shipping.send(path, name, digest)
            self._journal.record_sent(name, digest)
            hollow(path, file.header, file.n_bytes)
            with self._lock:
                self._on_disk -= file.n_bytes


def leaves_by_shards(layout: Layout) -> bool:
    """Whether an artifact is sent shard by shard: a split GGUF is."""
    return layout.folder not in (None, layout.opened)


def hollow(path: Path, header: bytes, n_bytes: int) -> None:
    """Give back the disk that a file takes up behind its header."""
    write_at_start(path, header, n_bytes)


def is_sent(entry: Mapping[str, Any], shipping: Shipping | None) -> bool:
    """Whether an artifact lies where this build would send it, and not here."""
    return shipping is not None and entry.get("published") == shipping.to


def put_away(out: Path, layout: Layout) -> None:
    """Leave of a sent artifact what its card is made of; nothing to do where that was done."""
    final = out / (layout.folder or layout.files[0].name)
    for path in (final, final.with_name(final.name + PARTIAL)):
        if not path.exists():
            continue
        for file in layout.files:
            hollow(path / file.name if layout.folder else path, file.header, file.n_bytes)
        (out / STAGED).mkdir(exist_ok=True)
        remove(out / STAGED / final.name)
        path.rename(out / STAGED / final.name)


def send_whole(out: Path, layout: Layout, entry: dict[str, Any], shipping: Shipping) -> None:
    """Send a finished artifact, and note that in the manifest."""
    for file in entry["files"]:
        shipping.send(out / file["name"], file["name"], file["sha256"])
    entry["published"] = shipping.to
    manifest.add_artifact(out, layout.name, entry)
