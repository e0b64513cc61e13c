"""What rounding does to weights: the weighted error of each tensor in each encoding, measured.

Our own kernels encode the rows of a checkpoint, which are read in slabs, as a build does.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantkit.building.encode import check_weights, too_large, widened
from quantkit.building.source import read_unit
from quantkit.building.units import Unit, cut_units
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.hub_rows import with_rows
from quantkit.checkpoint.imatrix import Imatrix
from quantkit.checkpoint.rows import open_rows
from quantkit.core.tensors import FLOAT_BYTES
from quantkit.encodings import ggml
from quantkit.encodings.encoding import Encoding
from quantkit.encodings.kernel import Kernel
from quantkit.families.model import Model, Target

_RUNS = 8  # of consecutive rows, where only some rows are looked at
_WAITING = 2  # slabs that wait for each thread


def measure_errors(
    checkpoint: Checkpoint,
    model: Model,
    wanted: Mapping[str, Sequence[Encoding]],
    imatrix: Imatrix | None,
    kernel: Kernel,
    *,
    rows: int | None = None,
    jobs: int = 1,
    finish: Callable[[str, Mapping[str, float]], None] = lambda _name, _errors: None,
    report: Callable[[float], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[tuple[str, str], float]:
    """The relative weighted error of tensors by (tensor, encoding).

    That is the sum of importance times squared difference over that of importance times squared
    weight; importance is 1 where there is none. Of a tensor of several experts each has its own
    importance. The result depends on neither threads nor memory.

    Args:
        checkpoint: where weights come from; some slabs of rows are in memory at once.
        model: the checkpoint's.
        wanted: encodings by the names of the model's tensors; their rows are whole blocks of each.
        imatrix: importance, or None.
        kernel: what encodes.
        rows: how many of each matrix to look at, in evenly spaced runs; by default all.
        jobs: threads that encode.
        finish: called with each tensor whose rows were all looked at, and its errors by encoding.
        report: told the share of the elements that are done.
        say: told where kernels have to be compiled before.

    Raises:
        CheckpointError: a weight cannot be read.
        WeightsError: a weight is not finite, or too large for an encoding.
        ImatrixError: an entry is of another size.

    """
    targets = model.targets
    units = [
        unit
        for unit in cut_units(targets, checkpoint.tensors, checkpoint.description)
        if unit.source is not None and wanted.get(targets[unit.target].name)
    ]
    if rows is not None:
        units = [part for unit in units for part in _sampled(unit, targets[unit.target], rows)]
    columns = {
        name: imatrix.columns_of(target)
        for target in targets
        if imatrix is not None and wanted.get(name := target.name)
    }
    _prepare(kernel, wanted, columns, units, say)
    read_rows = open_rows(with_rows(checkpoint))

    def measure(unit: Unit, raw: NDArray[np.uint8]) -> list[float]:
        target = targets[unit.target]
        importance = columns.get(target.name)
        one = None if importance is None else importance[unit.matrix]
        return _errors_of(unit, target, raw, wanted[target.name], one, kernel)

    total = sum(unit.rows * targets[unit.target].columns for unit in units)
    done = 0
    sums: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(1))
    left = Counter(targets[unit.target].name for unit in units)
    found_of: dict[str, dict[str, float]] = {}
    read = ((unit, read_unit(unit, read_rows)) for unit in units)
    for unit, found in _in_order(measure, read, jobs):
        target = targets[unit.target]
        sums[target.name] = sums[target.name] + np.array(found)
        done += unit.rows * target.columns
        left[target.name] -= 1
        if not left[target.name]:
            squares, *errors = sums.pop(target.name)
            found_of[target.name] = {
                kind.name: float(error / squares) if squares else 0.0
                for kind, error in zip(wanted[target.name], errors, strict=True)
            }
            finish(target.name, found_of[target.name])
        report(done / total)
    return {
        (name, kind): error for name, errors in found_of.items() for kind, error in errors.items()
    }


def _errors_of(
    unit: Unit,
    target: Target,
    raw: NDArray[np.uint8],
    kinds: Sequence[Encoding],
    importance: NDArray[np.float32] | None,
    kernel: Kernel,
) -> list[float]:
    """A slab's weighted squares, and its weighted squared error in each encoding.

    Rows are taken in the checkpoint's order: each is encoded by itself.
    """
    assert unit.source is not None  # noqa: S101 - there is something to round
    check_weights(unit, target, raw)
    slab = widened(raw, unit.source.dtype, target.columns)
    weights = np.ones(target.columns) if importance is None else importance.astype(np.float64)
    found = [_weighted_squares(slab.rows, weights)]
    for kind in kinds:
        if kind.name == "F32":
            found.append(0.0)
            continue
        try:
            data = kernel.encode(slab, kind, importance if kind.is_block else None)
        except OverflowError:
            raise too_large(unit, kind) from None
        decoded = ggml.decode(data.reshape(-1), kind).reshape(slab.rows.shape)
        found.append(_weighted_squares(decoded - slab.rows, weights))
    return found


def _weighted_squares(rows: NDArray[np.float32], weights: NDArray[np.float64]) -> float:
    return float(np.square(rows).sum(axis=0, dtype=np.float64) @ weights)


def _sampled(unit: Unit, target: Target, rows: int) -> Iterator[Unit]:
    """The parts of a unit that are in a sample of its matrix: evenly spaced runs of rows."""
    per_matrix = target.shape[-2]
    if per_matrix <= rows:
        yield unit
        return
    first = unit.row - unit.matrix * per_matrix
    runs = min(_RUNS, rows)
    for run in range(runs):
        begin = run * per_matrix // runs
        length = (run + 1) * rows // runs - run * rows // runs
        start, stop = max(begin, first), min(begin + length, first + unit.rows)
        if start < stop:
            off = start - first
            yield replace(unit, row=unit.row + off, first=unit.first + off, rows=stop - start)


def _prepare(
    kernel: Kernel,
    wanted: Mapping[str, Sequence[Encoding]],
    columns: Mapping[str, NDArray[np.float32] | None],
    units: Iterable[Unit],
    say: Callable[[str], None],
) -> None:
    wishes = {
        (kind, columns.get(name) is not None) for name, kinds in wanted.items() for kind in kinds
    }
    dtypes = {unit.source.dtype for unit in units if unit.source is not None}
    kernel.prepare(
        sorted(wishes, key=lambda wish: (wish[0].name, wish[1])),
        {dtype if dtype in FLOAT_BYTES else "F32" for dtype in dtypes},
        say,
    )


def _in_order(
    measure: Callable[[Unit, NDArray[np.uint8]], list[float]],
    read: Iterator[tuple[Unit, NDArray[np.uint8]]],
    jobs: int,
) -> Iterator[tuple[Unit, list[float]]]:
    """What is found of each slab, in their order, with few of them in memory."""
    waiting: deque[tuple[Unit, Future[list[float]]]] = deque()
    with ThreadPoolExecutor(jobs) as pool:
        for unit, raw in read:
            waiting.append((unit, pool.submit(measure, unit, raw)))
            if len(waiting) >= _WAITING * jobs:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
