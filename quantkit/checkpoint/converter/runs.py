"""Tensors that are rows of the checkpoint, unchanged. Runs in the converter's process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from quantkit.checkpoint.converter.nodes import (
    CASTS,
    Lazy,
    axis_of,
    is_lazy,
    is_leaf,
    lazies,
    operation,
    shape_of,
)
from quantkit.checkpoint.converter.pushed import piece_of


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows of a leaf, which counts rows over all but its last axis."""

    source: str
    row: int
    rows: int


_RESHAPES = {"reshape", "view", "squeeze", "unsqueeze", "flatten"}


def rows_of_sources(node: Lazy) -> list[Run] | None:
    """The rows of the checkpoint that a tensor's rows are, unchanged, or None.

    Numbers may get a wider type on the way, which any encoding of them begins with anyway.
    """
    shape = shape_of(node)
    if node._data is not None or not shape:
        return None
    if is_leaf(node):
        return [Run(node._args[0].name, 0, prod(shape[:-1]))]
    name = operation(node)
    if name == "eager_tuple_element":
        return _piece_of_sources(node)
    rule = _OF_SOURCES.get(name)
    return None if rule is None else rule(node)


def _cast_of_sources(node: Lazy) -> list[Run] | None:
    argument, *others = list(lazies(node._args))
    before, after = (str(n._meta.dtype).removeprefix("torch.") for n in (argument, node))
    floats = ("float32", "float16", "bfloat16")
    if others or before not in floats or after not in ("float32", before):
        return None
    return rows_of_sources(argument) if shape_of(argument) == shape_of(node) else None


def _reshape_of_sources(node: Lazy) -> list[Run] | None:
    argument = node._args[0]
    if not shape_of(argument) or shape_of(argument)[-1] != shape_of(node)[-1]:
        return None
    if str(argument._meta.dtype) != str(node._meta.dtype):
        return None
    return rows_of_sources(argument)


def _stack_of_sources(node: Lazy) -> list[Run] | None:
    if axis_of(node, 1, len(shape_of(node))) != 0:
        return None
    return _all_runs(node._args[0])


def _concatenate_of_sources(node: Lazy) -> list[Run] | None:
    shape = shape_of(node)
    axis = axis_of(node, 1, len(shape))
    if axis == len(shape) - 1:
        return None
    if axis == 0:
        return _all_runs(node._args[0])
    runs: list[Run] = []
    found = [(argument, rows_of_sources(argument)) for argument in node._args[0]]
    for outer in range(prod(shape[:axis])):
        for argument, its in found:
            if its is None:
                return None
            size = prod(shape_of(argument)[axis:-1])
            runs += cut_runs(its, outer * size, size)
    return runs


def _all_runs(nodes: Sequence[Lazy]) -> list[Run] | None:
    runs: list[Run] = []
    for node in nodes:
        its = rows_of_sources(node)
        if its is None:
            return None
        runs += its
    return runs


def _item_of_sources(node: Lazy) -> list[Run] | None:
    argument, index = node._args
    if is_lazy(index):
        return None
    wanted = index if isinstance(index, tuple) else (index,)
    shape = shape_of(argument)
    if len(wanted) > len(shape) - 1 and not all(
        item == slice(None) for item in wanted[len(shape) - 1 :]
    ):
        return None
    axes = []
    for axis, size in enumerate(shape[:-1]):
        item = wanted[axis] if axis < len(wanted) else slice(None)
        if isinstance(item, slice):
            axes.append(range(*item.indices(size)))
        elif type(item) is int:
            axes.append(range(item % size, item % size + 1))
        else:
            return None
    return _chosen(argument, axes)


def _piece_of_sources(node: Lazy) -> list[Run] | None:
    piece = piece_of(node)
    if piece is None:
        return None
    argument, axis, start = piece
    shape = shape_of(argument)
    if axis == len(shape) - 1:
        return None
    axes = [range(size) for size in shape[:-1]]
    axes[axis] = range(start, start + shape_of(node)[axis])
    return _chosen(argument, axes)


def _chosen(argument: Lazy, axes: Sequence[range]) -> list[Run] | None:
    """Rows of a tensor by ranges of all its axes but the last."""
    runs = rows_of_sources(argument)
    if runs is None or not axes or any(axis.step != 1 for axis in axes):
        return None
    shape = shape_of(argument)
    found: list[Run] = []
    # From the inside: as long as whole axes are taken, rows are consecutive.
    size, last = 1, len(axes) - 1
    while last > 0 and len(axes[last]) == shape[last]:
        size *= shape[last]
        last -= 1
    starts = [0]
    for axis, span in enumerate(axes[:last]):
        starts = [start * shape[axis] + place for start in starts for place in span]
    for start in starts:
        first = (start * shape[last] + axes[last].start) * size
        found += cut_runs(runs, first, len(axes[last]) * size)
    return found


def cut_runs(runs: Sequence[Run], first: int, count: int) -> list[Run]:
    """Some of the rows that runs are, in order."""
    found = []
    for run in runs:
        low, high = max(first, 0), min(first + count, run.rows)
        if low < high:
            found.append(Run(run.source, run.row + low, high - low))
        first -= run.rows
    return found


_OF_SOURCES: dict[str, Callable[[Lazy], list[Run] | None]] = {
    **dict.fromkeys(CASTS, _cast_of_sources),
    **dict.fromkeys(_RESHAPES, _reshape_of_sources),
    "stack": _stack_of_sources,
    "cat": _concatenate_of_sources,
    "concat": _concatenate_of_sources,
    "concatenate": _concatenate_of_sources,
    "__getitem__": _item_of_sources,
}
