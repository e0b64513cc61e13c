"""A model of a build's time: what units cost, what has to be moved, and what does not scale.

While units are encoded, the slowest of several limits sets the pace: processors, links, storage,
the process that drives. Then files are read back, each by one reader, because sha256 goes through
a file from front to back. Nothing overlaps with the start.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from math import inf

from benchmarks.unit_costs import UnitCosts, unit_bytes
from quantkit.building.source import stamps_of
from quantkit.building.units import UNIT_ELEMENTS, cut_units
from quantkit.building.work import Work

SOURCE_UNIT = 2 * UNIT_ELEMENTS  # bytes of a unit in bfloat16


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a build has to do, from its plan.

    ``encoded`` says how many units' worth of weights are encoded as what, once for all quants that
    want the same of a tensor. ``files`` are the bytes of each artifact's files.
    """

    n_units: int
    source_bytes: int
    encoded: Mapping[str, float]
    files: tuple[tuple[int, ...], ...]

    @property
    def output_bytes(self) -> int:
        """Bytes of all files."""
        return sum(map(sum, self.files))

    @property
    def source_units(self) -> float:
        """Units' worth of weights in the source."""
        return self.source_bytes / SOURCE_UNIT


def sizes_of(work: Work) -> Sizes:
    """Count what the engine will do with a plan."""
    targets = [tensor.target for tensor in work.layouts[0].plan.tensors]
    encoded: dict[str, float] = {}
    for index in range(len(targets)):
        tensors = [layout.plan.tensors[index] for layout in work.layouts]
        for tensor in {tensor.encoding: tensor for tensor in tensors}.values():
            name = tensor.encoding.name
            encoded[name] = encoded.get(name, 0.0) + tensor.n_bytes / unit_bytes(name)
    return Sizes(
        n_units=len(cut_units(targets, work.checkpoint.tensors)),
        source_bytes=sum(size for size, _ in stamps_of(work.checkpoint).values()),
        encoded=encoded,
        files=tuple(tuple(file.n_bytes for file in layout.files) for layout in work.layouts),
    )


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a build runs on; bandwidths are bytes per second, and infinite where nothing limits.

    ``cores`` is tasks at a time on each of the ``nodes``. ``read`` and ``write`` are what a node
    can move, ``storage`` what the shared folder takes and gives in all, ``hub`` what a Hub gives
    in all where the checkpoint lies there, None where it lies in the shared folder. Seconds:
    ``task`` is what a task takes of its core besides the work, ``driver`` what it takes of the
    process that drives, ``start`` everything before the first unit and after the last file.
    """

    nodes: int
    cores: int
    read: float = inf
    write: float = inf
    storage: float = inf
    hub: float | None = None
    task: float = 0.0
    driver: float = 0.0
    start: float = 0.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of a build by phase; of two phases, what each limit alone would make of them.

    ``end`` is how long cores wait for the last units.
    """

    start: float
    encode: Mapping[str, float]
    end: float
    verify: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Of the whole build."""
        return self.start + max(self.encode.values()) + self.end + max(self.verify.values())

    @property
    def binding(self) -> tuple[str, str]:
        """What limits encoding, and reading back."""
        return _largest(self.encode), _largest(self.verify)


def _largest(limits: Mapping[str, float]) -> str:
    return max(limits, key=lambda name: limits[name])


def encoding_seconds(sizes: Sizes, costs: UnitCosts) -> float:
    """Core-seconds of everything that is made of units once they are read, up to the page cache."""
    kernels = sum(count * costs.encode[name] for name, count in sizes.encoded.items())
    once = sizes.source_units * (costs.check + costs.widen)
    return kernels + once + sizes.output_bytes * costs.write


def predict_threads(
    sizes: Sizes, costs: UnitCosts, jobs: int, cores: int, start: float
) -> Prediction:
    """A build by threads of one machine: one reads and hashes, ``jobs`` encode."""
    encoding = encoding_seconds(sizes, costs)
    reading = sizes.source_units * (costs.read + costs.sha256)
    return Prediction(
        start,
        {
            "encoding threads": encoding / jobs,
            "reading": reading,
            "cores": (encoding + reading) / cores,
            "disk": sizes.output_bytes * costs.sync,
        },
        _end(encoding / sizes.n_units, jobs),
        {"longest file": _longest(sizes.files, costs.read_back, jobs)},
    )


def predict_cluster(sizes: Sizes, costs: UnitCosts, cluster: Cluster) -> Prediction:
    """A build by tasks: each reads, encodes and writes a unit on a core of its own.

    Source files in a shared folder are read a second time, by tasks that hash them, and every few
    seconds a task syncs what its node wrote. A core waits while its task moves bytes, for which it
    has at best all that a node can move.
    """
    slots = cluster.nodes * cluster.cores
    local = cluster.hub is None
    reads = (2 if local else 1) * sizes.source_bytes
    busy = encoding_seconds(sizes, costs) + sizes.n_units * cluster.task
    busy += sizes.source_units * (costs.read + local * (costs.read + costs.sha256))
    waits = reads / cluster.read + sizes.output_bytes / cluster.write
    per_byte = max(costs.read_back, 1 / min(cluster.read, cluster.storage))
    limits = {
        "processors": (busy + waits) / slots,
        "node links": max(reads / cluster.read, sizes.output_bytes / cluster.write) / cluster.nodes,
        "storage": (local * reads + sizes.output_bytes) / cluster.storage,
        "driver": sizes.n_units * cluster.driver,
    }
    if cluster.hub is not None:
        limits["Hub"] = sizes.source_bytes / cluster.hub
    return Prediction(
        cluster.start,
        limits,
        _end((busy + waits) / sizes.n_units, slots),
        {
            "longest file": _longest(sizes.files, per_byte, slots),
            "node links": sizes.output_bytes / cluster.read / cluster.nodes,
            "storage": sizes.output_bytes / cluster.storage,
        },
    )


def _end(unit_seconds: float, slots: int) -> float:
    """What the mean core waits for the last one: half a unit, where there are several."""
    return unit_seconds / 2 * (1 - 1 / slots)


def _longest(files: Sequence[Sequence[int]], per_byte: float, readers: int) -> float:
    """Until all is read back: files in their order, each by the next free of the readers."""
    free = [0.0] * readers
    for artifact in files:
        for n_bytes in artifact:
            heapreplace(free, free[0] + n_bytes * per_byte)
    return max(free)
