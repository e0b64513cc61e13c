"""The units of a build as tasks of a Ray cluster.

Tasks that a killed process or a lost node takes along are given out again, a few times. Ray's own
retries are off: they would not say what was done twice.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import quantkit
from quantkit.build.cluster import tasks
from quantkit.build.cluster.connection import Cluster, live_nodes, require_room
from quantkit.build.executor import Assignment, Crcs
from quantkit.build.output import Layout
from quantkit.build.readback import Written
from quantkit.build.source import Stamp, stamps_of
from quantkit.build.units import UNIT_ELEMENTS
from quantkit.checkpoint.hub_rows import with_rows
from quantkit.checkpoint.rows import open_rows
from quantkit.core.errors import ClusterError, OutputError
from quantkit.formats.folder import FolderLayout

# A process with numba's kernels, and one slab as bytes, twice as float32, and encoded.
TASK_MEMORY = 300 * 2**20 + UNIT_ELEMENTS * 4 * 4
_ATTEMPTS = 4
_AHEAD = 2  # tasks given out per processor, so that none waits for this process
_RECOUNT_SECONDS = 5.0
_POLL_SECONDS = 0.5
_CHECK_SECONDS = 300.0  # for all nodes to say that they are ready; kernels may have to be compiled


class ClusterExecutor:
    """Encodes in tasks, each of which reads its own rows and writes at its own places."""

    def __init__(self, cluster: Cluster, assignment: Assignment) -> None:
        import ray

        self._ray = ray
        self._cluster = cluster
        self._assignment = assignment
        work = assignment.work
        checkpoint = with_rows(work.checkpoint)
        # A checkpoint on the Hub is read by range, so nobody has a whole file to hash.
        self._files = {} if checkpoint.repo is not None else dict(assignment.reading.files)
        self._name = uuid.uuid4().hex
        self._out = assignment.artifacts[0].final.parent.absolute()
        job = tasks.Job(
            self._name,
            self._out,
            tuple(_without_headers(artifact.layout) for artifact in assignment.artifacts),
            tuple(assignment.units),
            open_rows(checkpoint),
            (work.kernel.name, work.kernel.search),
            work.imatrix,
        )
        self._job = [ray.put(job)]
        self._processors = require_room(TASK_MEMORY)
        self._counted = time.monotonic()
        cluster.log(f"Encoding on a Ray cluster of {self._processors} processors.")
        self._running: dict[Any, tuple[int, int]] = {}  # task -> unit, attempt
        self._hashing: dict[Any, tuple[Path, int]] = {}  # task -> file, attempt
        self.sha256: dict[Path, str] = {}

    def prepare(self) -> None:
        """See that every node has what tasks need, and let it compile its kernels."""
        marker = self._out / tasks.MARKER
        marker.write_text(self._name)
        try:
            self._check_nodes()
        finally:
            marker.unlink()
        hashed = self._assignment.reading.hashed
        for file, stamp in self._files.items():
            if file.name in hashed:
                self.sha256[file] = hashed[file.name]
            else:
                self._hash(file, stamp)

    def submit(self, index: int) -> None:
        """Give a unit out as soon as few enough are."""
        unit = self._assignment.units[index]
        if unit in self._assignment.reading.done:
            self._assignment.passed(unit.n_bytes)
            return
        while len(self._running) >= self._most:
            self._collect()
        self._start(index)

    def drain(self) -> None:
        """Wait for all tasks that encode."""
        while self._running:
            self._collect()

    def finish(self) -> None:
        """Wait for all tasks, and see that the source is what it was."""
        while self._running or self._hashing:
            self._collect()
        if self._files and stamps_of(self._assignment.work.checkpoint) != self._files:
            path = self._assignment.work.checkpoint.path
            raise OutputError(f"Weights in {path} changed while they were read; start again.")

    def cancel(self) -> None:
        """Keep what is there, and give up the rest."""
        ready, _ = (
            self._ray.wait(list(self._running), num_returns=max(1, len(self._running)), timeout=0)
            if self._running
            else ([], [])
        )
        for task in [*self._running, *self._hashing]:
            if task not in ready:
                self._ray.cancel(task)
        for task in ready:
            index, _ = self._running.pop(task)
            self._assignment.keep(index, self._ray.get(task))
        self._running.clear()
        self._hashing.clear()

    def read_back(
        self, artifact: int, file: int, written: Sequence[Written], count: Callable[[int], None]
    ) -> str:
        """Let some node read a file."""
        whole = self._assignment.artifacts[artifact]
        planned = whole.layout.files[file]
        path = whole.paths[file].absolute()
        for attempt in range(1, _ATTEMPTS + 1):
            task = self._remote(tasks.read_file_back).remote(
                path, planned.header, planned.n_bytes, list(written)
            )
            try:
                sha256: str = self._result(task)
            except _Lost as lost:
                self._lost(f"reading {path.name} back", str(lost), attempt)
                continue
            count(planned.n_bytes)
            return sha256
        raise AssertionError("The last attempt raises.")

    def close(self) -> None:
        """Let Ray forget the job."""
        self._job.clear()

    @property
    def _most(self) -> int:
        """How many tasks may be given out now; nodes come and go."""
        if self._cluster.jobs is not None:
            return self._cluster.jobs
        if time.monotonic() - self._counted > _RECOUNT_SECONDS:
            self._processors = require_room(TASK_MEMORY)
            self._counted = time.monotonic()
        return _AHEAD * self._processors

    def _remote(self, function: Callable[..., Any], **options: Any) -> Any:
        wants = {"num_cpus": 1, "memory": TASK_MEMORY, "max_retries": 0, **options}
        return self._ray.remote(**wants)(function)

    def _check_nodes(self) -> None:
        """Refuse nodes that would fail, or would encode otherwise."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        files = [(path.absolute(), stamp[0]) for path, stamp in self._files.items()]
        asked = {}
        for node in live_nodes():
            if node["Resources"].get("CPU", 0) >= 1:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                report = self._remote(tasks.report_node, num_cpus=0, scheduling_strategy=there)
                asked[report.remote(self._name, self._job, files)] = node["NodeManagerAddress"]
        _, silent = self._ray.wait(list(asked), num_returns=len(asked), timeout=_CHECK_SECONDS)
        if silent:
            raise ClusterError(
                f"Node {asked[silent[0]]} does not answer within {_CHECK_SECONDS:.0f} s; see "
                "`ray status`, remove the node or mend it."
            )
        for task, address in asked.items():
            try:
                report = self._result(task)
            except _Lost as lost:
                self._cluster.log(f"Node {address} was lost before it began: {lost}.")
            except ModuleNotFoundError as error:
                raise ClusterError(
                    f"Node {address} cannot run quantkit ({error}); install quantkit[ray] "
                    f"{quantkit.__version__} in the Python that its Ray runs in."
                ) from error
            else:
                self._check_node(f"Node {address} ({report.host})", report)

    def _check_node(self, node: str, report: tasks.NodeReport) -> None:
        versions = (quantkit.__version__, self._assignment.work.kernel.version)
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
        if not report.sees_output:
            raise ClusterError(
                f"{node} does not see {self._out}; choose a folder that all nodes share with -o."
            )

    def _start(self, index: int, attempt: int = 1) -> None:
        task = self._remote(tasks.encode).remote(self._name, self._job, index)
        self._running[task] = index, attempt

    def _hash(self, file: Path, stamp: Stamp, attempt: int = 1) -> None:
        self._hashing[self._remote(tasks.hash_file).remote(file.absolute(), stamp)] = file, attempt

    def _collect(self) -> None:
        """Wait for some task to end, not for long, and take what is there."""
        waited = [*self._running, *self._hashing]
        ready, _ = self._ray.wait(waited, num_returns=1, timeout=_POLL_SECONDS)
        if ready and len(waited) > 1:
            ready, _ = self._ray.wait(waited, num_returns=len(waited), timeout=0)
        for task in ready:
            if task in self._hashing:
                self._take_hash(task)
            else:
                self._take_unit(task)

    def _take_unit(self, task: Any) -> None:
        index, attempt = self._running.pop(task)
        unit = self._assignment.units[index]
        try:
            crcs: Crcs = self._result(task)
        except _Lost as lost:
            target = self._assignment.artifacts[0].layout.plan.tensors[unit.target].target
            what = f"slab {index + 1} of {len(self._assignment.units)} ({target.name})"
            self._lost(what, str(lost), attempt)
            self._start(index, attempt + 1)
            return
        self._assignment.keep(index, crcs)
        self._assignment.passed(unit.n_bytes)

    def _take_hash(self, task: Any) -> None:
        file, attempt = self._hashing.pop(task)
        try:
            self.sha256[file] = self._result(task)
        except _Lost as lost:
            self._lost(f"the sha256 of {file.name}", str(lost), attempt)
            self._hash(file, self._files[file], attempt + 1)

    def _lost(self, what: str, why: str, attempt: int) -> None:
        """Say what will be done again, or give up."""
        if attempt == _ATTEMPTS:
            raise ClusterError(
                f"{what[0].upper()}{what[1:]} was lost {_ATTEMPTS} times, at last because {why}; "
                "see to the cluster's nodes and run the same command to resume."
            )
        self._cluster.log(f"Trying again ({attempt} of {_ATTEMPTS - 1}): {what}; {why}.")

    def _result(self, task: Any) -> Any:
        """What a task returned; what it raised is raised here.

        Raises:
            _Lost: its process or node is gone.
            ClusterError: Ray failed otherwise.

        """
        from ray import exceptions

        try:
            return self._ray.get(task)
        except exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, exceptions.RayError):
                raise ClusterError(f"Ray failed: {_first_line(cause)}.") from error
            raise cause from error
        except exceptions.NodeDiedError as error:
            raise _Lost(f"its node was lost ({_address(error)})") from error
        except exceptions.OutOfMemoryError as error:
            raise _Lost("its process was killed for want of memory") from error
        except (exceptions.WorkerCrashedError, exceptions.ObjectLostError) as error:
            raise _Lost("its process was killed") from error
        except exceptions.RayError as error:
            raise ClusterError(
                f"Ray failed: {_first_line(error)}; see `ray status`, then run the same command to "
                "resume."
            ) from error


class _Lost(Exception):  # noqa: N818 - says what happened, and never leaves this file
    """A task came to nothing through no fault of its own."""


def _without_headers(layout: Layout) -> Layout:
    """A layout as tasks need it: they write no headers, which hold whole vocabularies."""
    if isinstance(layout, FolderLayout):
        return layout
    return replace(layout, files=tuple(replace(file, header=b"") for file in layout.files))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _address(error: BaseException) -> str:
    """The node's address, which Ray has only in its sentence."""
    _, _, rest = str(error).partition("Node IP: ")
    return rest.partition(",")[0] or "unknown"
