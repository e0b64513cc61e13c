"""The units of a build as tasks of a Ray cluster.

Tasks that a killed process or a lost node takes along are given out again, a few times.
"""

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.building.cluster import calls, tasks
from quantkit.building.cluster.calls import Lost
from quantkit.building.cluster.connection import Cluster
from quantkit.building.cluster.scattered import (
    ScatteredArtifact,
    find_storages,
    is_held,
    is_shared,
    require_shards,
)
from quantkit.building.executor import Crcs, EncodeRequest
from quantkit.building.output import PartialArtifact
from quantkit.building.readback import Written, read_back
from quantkit.building.source import Stamp, hash_source, stamps_of
from quantkit.checkpoint.hub_rows import with_rows
from quantkit.checkpoint.rows import open_rows
from quantkit.core.errors import CheckpointError, ClusterError, OutputError, QuantkitError
from quantkit.core.version import __version__
from quantkit.formats.layout import Layout

_ATTEMPTS = 4
_AHEAD = 2  # tasks given out per processor, so that none waits for this process
_RECOUNT_SECONDS = 5.0
_SYNC_SECONDS = 5.0
_POLL_SECONDS = 0.5
_CANCEL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ClusterWorkers:
    """The nodes of a cluster as those who encode.

    Where they share the output folder, they write into the files there. Where they do not, split
    artifacts are divided among their disks, unless ``needed_here``.
    """

    cluster: Cluster
    needed_here: bool = False

    def place(self, out: Path, layouts: Sequence[Layout]) -> list[PartialArtifact]:
        """The artifacts, in the folder or on the nodes' disks.

        Raises:
            OutputError: the nodes do not share the folder, and must.

        """
        if is_shared(out.absolute()):
            return [PartialArtifact(out, layout) for layout in layouts]
        if self.needed_here:
            raise OutputError(
                f"Not all nodes of the cluster share {out}, from which --publish sends the files; "
                "choose a shared folder with -o."
            )
        require_shards(layouts, out)
        storages = find_storages(out.absolute())
        self.cluster.log(
            f"The nodes do not share {out}: shards stay on the disks of {len(storages)} of them."
        )
        return [ScatteredArtifact(out, layout, storages) for layout in layouts]

    def start(self, assignment: EncodeRequest) -> "ClusterExecutor":
        """What gives out tasks."""
        return ClusterExecutor(self.cluster, assignment)

    def hold(self, out: Path, entry: Mapping[str, Any]) -> bool:
        """Whether the nodes' disks hold the shards of a finished artifact."""
        return is_held(out, entry)


@dataclass(slots=True)
class _Begun:
    """A unit that is out: for how many tasks of it we wait, and what came back, by artifact."""

    tasks: int
    crcs: Crcs


@dataclass(frozen=True, slots=True)
class _Slab:
    """One task: a unit for some artifacts, where the disk of the file ``beside`` is, if any."""

    index: int
    numbers: tuple[int, ...]
    beside: tuple[ScatteredArtifact, int] | None
    attempt: int = 1


class ClusterExecutor:
    """Encodes in tasks, each of which reads its own rows and writes at its own places."""

    def __init__(self, cluster: Cluster, assignment: EncodeRequest) -> None:
        import ray

        self._ray = ray
        self._cluster = cluster
        self._assignment = assignment
        work, artifacts = assignment.work, assignment.artifacts
        checkpoint = with_rows(work.checkpoint)
        # A checkpoint on the Hub is read by range, so nobody has a whole file to hash.
        self._files = {} if checkpoint.repo is not None else dict(assignment.reading.files)
        self._name = uuid.uuid4().hex
        scattered = any(isinstance(artifact, ScatteredArtifact) for artifact in artifacts)
        job = tasks.Job(
            self._name,
            artifacts[0].final.parent.absolute(),
            tuple(artifact.layout.without_headers() for artifact in artifacts),
            tuple(assignment.units),
            open_rows(checkpoint),
            (work.kernel.name, work.kernel.search),
            work.imatrix,
            scattered,
        )
        # The engine syncs the files before it journals units, and so what was written on its node.
        self._here = None if scattered else cluster.node
        self._job = [ray.put(job)]
        self._processors = calls.count_processors()
        self._counted = time.monotonic()
        self._begun: dict[int, _Begun] = {}
        self._encoding: dict[Any, _Slab] = {}
        self._hashing: dict[Any, tuple[Path, int]] = {}  # file, attempt
        # What was written, by node: first not yet, then being forced to its disk.
        self._written: dict[str, list[tuple[_Slab, Crcs]]] = defaultdict(list)
        self._syncing: dict[Any, tuple[str, list[tuple[_Slab, Crcs]]]] = {}
        self._synced = time.monotonic()
        self.sha256: dict[Path, str] = {}

    def prepare(self) -> None:
        """See that every node has what tasks need, and let it compile its kernels."""
        self._cluster.log(f"Encoding on a Ray cluster of {self._processors} processors.")
        files = [(path.absolute(), stamp[0]) for path, stamp in self._files.items()]
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in calls.live_nodes()}
        reports = calls.ask(list(addresses), tasks.report_node, self._name, self._job, files)
        hashed = self._assignment.reading.hashed
        for file, stamp in self._files.items():
            if file.name in hashed:
                self.sha256[file] = hashed[file.name]
            else:
                self._hash(file, stamp)  # which needs no kernels
        for node, report in reports:
            self._check_node(f"Node {addresses[node]} ({report.host})", report)

    def submit(self, index: int) -> None:
        """Give a unit out as soon as few enough are."""
        unit = self._assignment.units[index]
        if unit in self._assignment.reading.done:
            self._assignment.passed(unit.n_bytes)
            return
        while len(self._encoding) + len(self._hashing) >= self._most:
            self._collect()
        self._divide(index)

    def drain(self) -> None:
        """Wait until all units that are out are written and synced."""
        while self._begun:
            self._collect()

    def finish(self) -> None:
        """Wait for all tasks, and see that the source is what it was."""
        self.drain()
        while self._hashing:
            self._collect()
        checkpoint = self._assignment.work.checkpoint
        if self._files and stamps_of(checkpoint) != self._files:
            raise CheckpointError(
                f"The weights of {checkpoint.path} changed while they were read; run the same "
                "command again."
            )

    def cancel(self) -> None:
        """Wait for the tasks that are out, not for long.

        They are not cancelled: Ray 2.60 may end this process when one is over at that moment.
        """
        self._hashing.clear()
        deadline = time.monotonic() + _CANCEL_SECONDS
        while self._is_out and time.monotonic() < deadline:
            with suppress(QuantkitError):  # there is a reason already
                self._collect()

    @property
    def readers(self) -> int:
        """One per processor of the cluster."""
        return self._cluster.jobs or self._processors

    def read_back(
        self, artifact: int, file: int, written: Sequence[Written], count: Callable[[int], None]
    ) -> str:
        """Let a node read a file."""
        whole = self._assignment.artifacts[artifact]
        planned = whole.layout.files[file]
        path = whole.paths[file].absolute()
        for attempt in range(1, _ATTEMPTS + 1):
            node = whole.node_of(file) if isinstance(whole, ScatteredArtifact) else None
            arguments = (path, planned.header, planned.n_bytes, list(written))
            task = calls.call(read_back, *arguments, node=node)
            while not self._ray.wait([task], timeout=_POLL_SECONDS)[0]:
                count(0)  # raises once nobody wants to know any more
            try:
                sha256: str = calls.result(task)
            except Lost as lost:
                self._say_lost(f"reading {path.name} back", lost, attempt)
            else:
                count(planned.n_bytes)
                return sha256
        raise AssertionError("The last attempt has raised.")

    def close(self) -> None:
        """Let Ray forget the job."""
        self._job.clear()

    @property
    def _is_out(self) -> bool:
        """Whether any slab is being encoded or synced; one that failed is not."""
        return bool(self._encoding or self._syncing or any(self._written.values()))

    @property
    def _most(self) -> int:
        """How many tasks may be out now; nodes come and go."""
        if self._cluster.jobs is not None:
            return self._cluster.jobs
        if time.monotonic() - self._counted > _RECOUNT_SECONDS:
            self._processors = calls.count_processors()
            self._counted = time.monotonic()
        return _AHEAD * self._processors

    def _check_node(self, node: str, report: tasks.NodeReport) -> None:
        """Refuse a node that would fail, or would encode otherwise."""
        versions = (__version__, self._assignment.work.kernel.version)
        if report.versions != versions:
            raise ClusterError(
                f"{node} has quantkit {' with kernel '.join(report.versions)}, not "
                f"{' with kernel '.join(versions)}; install the same on all nodes."
            )
        if report.lacking:
            raise ClusterError(
                f"{node} does not see {report.lacking[0]} as it is here; put the checkpoint in a "
                "folder that all nodes share, or name it by its Hub id."
            )

    def _divide(self, index: int) -> None:
        """Give a unit out: as one task, or as one for each disk that something of it goes to."""
        unit = self._assignment.units[index]
        numbers: dict[str, list[int]] = defaultdict(list)
        beside: dict[str, tuple[ScatteredArtifact, int]] = {}
        for number in self._assignment.numbers(index):
            artifact = self._assignment.artifacts[number]
            storage = ""
            if isinstance(artifact, ScatteredArtifact):
                (place,) = artifact.layout.places(unit.target, unit.row, unit.rows)
                storage = artifact.storage_of[place.file]
                beside[storage] = artifact, place.file
            numbers[storage].append(number)
        self._begun[index] = _Begun(len(numbers), [[] for _ in self._assignment.artifacts])
        for storage, some in numbers.items():
            self._encode(_Slab(index, tuple(some), beside.get(storage)))

    def _encode(self, slab: _Slab) -> None:
        node = None
        if slab.beside is not None:
            artifact, file = slab.beside
            node = artifact.node_of(file)
        arguments = (self._name, self._job, slab.index, slab.numbers)
        self._encoding[calls.call(tasks.encode, *arguments, node=node)] = slab

    def _hash(self, file: Path, stamp: Stamp, attempt: int = 1) -> None:
        self._hashing[calls.call(hash_source, file.absolute(), stamp)] = file, attempt

    def _sync(self) -> None:
        """Let nodes force what they wrote to their disks."""
        for node in [node for node, written in self._written.items() if written]:
            task = calls.call(tasks.sync, self._name, self._job, node=node)
            self._syncing[task] = node, self._written.pop(node)
        self._synced = time.monotonic()

    def _collect(self) -> None:
        """Wait for some task to end, not for long, and take what is there."""
        if not self._encoding or time.monotonic() - self._synced > _SYNC_SECONDS:
            self._sync()
        waited = [*self._encoding, *self._hashing, *self._syncing]
        ready, _ = self._ray.wait(waited, num_returns=1, timeout=_POLL_SECONDS)
        if ready:
            ready, _ = self._ray.wait(waited, num_returns=len(waited), timeout=0)
        for task in ready:
            if task in self._encoding:
                self._take_slab(task)
            elif task in self._hashing:
                self._take_hash(task)
            else:
                self._take_sync(task)

    def _take_slab(self, task: Any) -> None:
        slab = self._encoding.pop(task)
        try:
            node, crcs = calls.result(task)
        except Lost as lost:
            self._encode_again(slab, lost)
        else:
            if node == self._here:
                self._take(slab, crcs)
            else:
                self._written[node].append((slab, crcs))

    def _take_hash(self, task: Any) -> None:
        file, attempt = self._hashing.pop(task)
        try:
            self.sha256[file] = calls.result(task)
        except Lost as lost:
            self._say_lost(f"the sha256 of {file.name}", lost, attempt)
            self._hash(file, self._files[file], attempt + 1)

    def _take_sync(self, task: Any) -> None:
        """Keep what is on a node's disk now; encode again what was lost with the node."""
        node, written = self._syncing.pop(task)
        try:
            calls.result(task)
        except Lost as lost:
            if node in calls.live_ids():
                self._written[node] += written  # only the process that synced is gone
                return
            for slab, _ in written:
                self._encode_again(slab, lost)
            return
        for slab, crcs in written:
            self._take(slab, crcs)

    def _take(self, slab: _Slab, crcs: Crcs) -> None:
        begun = self._begun[slab.index]
        begun.tasks -= 1
        begun.crcs = [new or old for new, old in zip(crcs, begun.crcs, strict=True)]
        if not begun.tasks:
            del self._begun[slab.index]
            self._assignment.keep(slab.index, begun.crcs)
            self._assignment.passed(self._assignment.units[slab.index].n_bytes)

    def _encode_again(self, slab: _Slab, lost: Lost) -> None:
        units, layout = self._assignment.units, self._assignment.artifacts[0].layout
        target = layout.plan.tensors[units[slab.index].target].target
        self._say_lost(f"slab {slab.index + 1} of {len(units)} ({target.name})", lost, slab.attempt)
        self._encode(replace(slab, attempt=slab.attempt + 1))

    def _say_lost(self, what: str, lost: Lost, attempt: int) -> None:
        """Say what will be done again, or give up."""
        if attempt == _ATTEMPTS:
            raise ClusterError(
                f"{what[0].upper()}{what[1:]} was lost {_ATTEMPTS} times, at last because {lost}; "
                "see to the cluster's nodes and run the same command to resume."
            )
        self._cluster.log(f"Trying again ({attempt} of {_ATTEMPTS - 1}): {what}; {lost}.")
