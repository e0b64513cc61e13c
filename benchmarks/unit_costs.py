"""What one unit of a build costs, step by step, on one core.

The engine's own encoder, kernels, artifacts and read-back do the work; clocks stand between them.
"""

import hashlib
import multiprocessing
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from quantkit.building.encode import Encoder
from quantkit.building.output import PartialArtifact
from quantkit.building.readback import read_back
from quantkit.building.source import read_unit
from quantkit.building.units import UNIT_ELEMENTS, Unit, cut_units
from quantkit.building.work import Work, prepare
from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.checkpoint.rows import open_rows
from quantkit.core.tensors import FLOAT_BYTES
from quantkit.encodings.encoding import Encoding, encoding
from quantkit.encodings.fast.tiles import make_tiles
from quantkit.encodings.kernel import load_kernel
from quantkit.encodings.slab import Slab
from quantkit.formats.layout import Layout
from quantkit.formats.place import Place
from quantkit.planning.quants import find_quants

_SUPERBLOCK = 256  # what tiles are made for
_READY_SECONDS = 120.0  # for processes to compile a kernel
_SMALL = 4096  # bytes whose fdatasync shows what a call costs


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """Seconds of one core; medians over several units of ``UNIT_ELEMENTS`` bfloat16 weights.

    For a unit: ``read`` it from the page cache; ``sha256``; ``check`` that it is finite, and put
    its rows in order; ``widen`` it to float32, as rows and as tiles, which serves all encodings;
    ``encode`` it, by the encoding's name. For a byte of output: ``write`` it into the page cache,
    CRC-32 included; ``sync`` it to the disk, apart from the ``sync_call`` that each file takes;
    ``read_back`` from the page cache, with CRC-32 and sha256. Syncing is waiting; all else is time
    on the processor, which does not count what other programs take.
    """

    read: float
    sha256: float
    check: float
    widen: float
    encode: Mapping[str, float]
    write: float
    sync: float
    sync_call: float
    read_back: float


def unit_bytes(name: str) -> int:
    """Bytes of a unit in the encoding of this name."""
    return encoding(name).row_bytes(UNIT_ELEMENTS)


def cost_tables(costs: UnitCosts) -> list[Table]:
    """Milliseconds per unit: of its source, and of what is made of it."""
    source = Table(title=f"A unit ({UNIT_ELEMENTS:,} weights) on one core", title_justify="left")
    steps = {
        "read": costs.read,
        "sha256": costs.sha256,
        "check": costs.check,
        "widen": costs.widen,
        "fdatasync per file": costs.sync_call,
    }
    for step in steps:
        source.add_column(step, justify="right")
    source.add_row(*(f"{1000 * seconds:.2f} ms" for seconds in steps.values()))
    made = Table(title="What is made of it, in ms", title_justify="left")
    made.add_column("encoding")
    for heading in ("MB", "encode", "CRC-32 and write", "fdatasync", "read back"):
        made.add_column(heading, justify="right")
    for name, seconds in sorted(costs.encode.items(), key=lambda item: -unit_bytes(item[0])):
        n_bytes = unit_bytes(name)
        per_byte = (costs.write, costs.sync, costs.read_back)
        figures = [1000 * n_bytes * each for each in per_byte]
        encoded = f"{1000 * seconds:.1f}"
        made.add_row(name, f"{n_bytes / 1e6:.2f}", encoded, *(f"{each:.1f}" for each in figures))
    return [source, made]


class _Clocks:
    """Seconds by step, of one unit at a time."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, step: str) -> Iterator[None]:
        start = time.thread_time()
        yield
        self.seconds[step] += time.thread_time() - start


class _TimedArtifact(PartialArtifact):
    """Says how long writing takes, and how much it was."""

    def __init__(self, folder: Path, layout: Layout, clocks: _Clocks) -> None:
        super().__init__(folder, layout)
        self._clocks = clocks
        self.n_bytes = 0

    def write(self, places: Sequence[Place], pieces: Sequence[memoryview]) -> list[int]:
        self.n_bytes = sum(len(piece) for piece in pieces)
        with self._clocks.time("write"):
            return super().write(places, pieces)


def measure_unit_costs(
    checkpoint: Path,
    quants: Sequence[str],
    folder: Path,
    count: int = 5,
    busy: int = 1,
    imatrix: Path | None = None,
) -> UnitCosts:
    """Measure on units of a checkpoint.

    Args:
        checkpoint: of bfloat16, with matrices of at least a unit each.
        quants: whose encodings are measured, as far as whole units have them.
        folder: on whose disk to write.
        count: units for each encoding.
        busy: cores that work meanwhile, this one included: they share caches, memory and clock.
        imatrix: an importance matrix to build with.

    """
    matrix = load_imatrix(imatrix) if imatrix else None
    work = prepare(checkpoint, find_quants(quants), imatrix=matrix)
    with TemporaryDirectory(prefix="unit-costs-", dir=folder) as name, _neighbours(busy - 1):
        taken = _take_units(work, Path(name), count)
        read_back_costs = _read_back(Path(name), count)
    steps: defaultdict[str, list[float]] = defaultdict(list)
    for seconds in taken:
        for step, spent in seconds.items():
            steps[step].append(spent)
    middle = {step: median(spent) for step, spent in steps.items()}
    single = ("read", "sha256", "check", "widen", "write", "sync", "sync_call")
    return UnitCosts(
        **{step: middle[step] for step in single},
        encode={step: middle[step] for step in middle if step not in single},
        read_back=read_back_costs,
    )


@contextmanager
def _neighbours(count: int) -> Iterator[None]:
    """So many processes that encode, without end."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(count + 1)
    processes = [
        context.Process(target=_keep_busy, args=(ready,), daemon=True) for _ in range(count)
    ]
    for process in processes:
        process.start()
    try:
        ready.wait(_READY_SECONDS)
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _keep_busy(ready: Barrier) -> None:
    kernel, kind = load_kernel("fast"), encoding("Q4_K")
    normal = np.random.default_rng(0).standard_normal(UNIT_ELEMENTS, np.float32)
    raw = (normal.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    kernel.encode(Slab(raw, "BF16", _SUPERBLOCK), kind, None)
    ready.wait(_READY_SECONDS)
    while True:
        hashlib.sha256(raw.data).digest()
        kernel.encode(Slab(raw, "BF16", _SUPERBLOCK), kind, None)


def _take_units(work: Work, folder: Path, count: int) -> list[dict[str, float]]:
    """Seconds by step, for each of the units."""
    clocks = _Clocks()
    kernel = work.kernel

    def encode(
        slab: Slab, kind: Encoding, importance: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        with clocks.time("widen"):
            _ = slab.rows, slab.tiles(_SUPERBLOCK, make_tiles)
        with clocks.time(kind.name):
            return kernel.encode(slab, kind, importance)

    units = cut_units([t.target for t in work.layouts[0].plan.tensors], work.checkpoint.tensors)
    artifacts = [_TimedArtifact(folder, layout, clocks) for layout in work.layouts]
    encoder = Encoder(replace(kernel, encode=encode), work.imatrix, artifacts)
    encoder.prepare(units, lambda _name: None)
    read_rows = open_rows(work.checkpoint)
    taken = []
    try:
        for artifact in artifacts:
            artifact.open()
        chosen = _choose(units, work, count)
        for unit in [chosen[0], *chosen]:  # the first warms up
            read_unit(unit, read_rows)
            clocks.seconds.clear()
            with clocks.time("read"):
                raw = read_unit(unit, read_rows)
            with clocks.time("sha256"):
                hashlib.sha256(raw.data).digest()
            inside = sum(clocks.seconds.values())
            start = time.thread_time()
            encoder.encode(unit, raw, range(len(artifacts)))
            spent = time.thread_time() - start
            clocks.seconds["check"] = spent - (sum(clocks.seconds.values()) - inside)
            written = clocks.seconds.pop("write") / sum(a.n_bytes for a in artifacts)
            whole_unit = UNIT_ELEMENTS / _weights(unit)
            seconds = {step: spent * whole_unit for step, spent in clocks.seconds.items()}
            taken.append({**seconds, "write": written, **_sync(artifacts, unit)})
    finally:
        for artifact in artifacts:
            artifact.close()
    return taken[1:]


def _choose(units: Sequence[Unit], work: Work, count: int) -> list[Unit]:
    """Whole units, so many for each encoding that there is."""
    found: defaultdict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        if not 0.99 < _weights(unit) / UNIT_ELEMENTS < 1.01:
            continue
        for layout in work.layouts:
            units_of = found[layout.plan.tensors[unit.target].encoding.name]
            if len(units_of) < count and unit not in units_of:
                units_of.append(unit)
    chosen = {unit: None for units_of in found.values() for unit in units_of}
    return list(chosen)


def _weights(unit: Unit) -> int:
    return unit.n_bytes // FLOAT_BYTES["BF16"]


def _sync(artifacts: Sequence[_TimedArtifact], unit: Unit) -> dict[str, float]:
    """Seconds of fdatasync per byte and per call, once a unit was written."""
    n_bytes = sum(artifact.n_bytes for artifact in artifacts)
    whole = _seconds_of_sync(artifacts)
    for artifact in artifacts:
        places = artifact.layout.places(unit.target, unit.row, unit.rows)
        PartialArtifact.write(artifact, places[:1], [memoryview(bytes(_SMALL))])
    calls = _seconds_of_sync(artifacts)
    return {"sync": max(0.0, whole - calls) / n_bytes, "sync_call": calls / len(artifacts)}


def _seconds_of_sync(artifacts: Sequence[PartialArtifact]) -> float:
    start = time.perf_counter()
    for artifact in artifacts:
        artifact.sync()
    return time.perf_counter() - start


def _read_back(folder: Path, count: int) -> float:
    """Seconds per byte of reading a file back."""
    piece = np.random.default_rng(0).bytes(unit_bytes("Q8_0"))
    path = folder / "read-back"
    path.write_bytes(piece * count)
    written = [(number * len(piece), len(piece), zlib.crc32(piece)) for number in range(count)]
    seconds = []
    for _ in range(3):
        start = time.thread_time()
        read_back(path, b"", len(piece) * count, written)
        seconds.append(time.thread_time() - start)
    return median(seconds) / (len(piece) * count)
