"""Which rows of its arguments some rows of a lazy tensor are made of. In the converter's process.

There is a rule for the functions that converters use; any other is evaluated as a whole and cut.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import prod
from typing import Any

from quantkit.checkpoint.converter.nodes import (
    CASTS,
    Array,
    Lazy,
    Rows,
    axis_of,
    call,
    is_lazy,
    lazies,
    name_of,
    operation,
    plain_call,
    shape_of,
    whole,
)

_ELEMENTWISE = {
    *CASTS,
    "double", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "sigmoid", "softplus", "tanh",
    "reciprocal", "add", "sub", "mul", "div", "true_divide", "pow", "floor", "round",
    "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_right_shift", "bitwise_left_shift",
    "__neg__", "__abs__", "__invert__", "__pos__", "__add__", "__radd__", "__iadd__", "__sub__",
    "__rsub__", "__isub__", "__mul__", "__rmul__", "__imul__", "__truediv__", "__rtruediv__",
    "__floordiv__", "__mod__", "__pow__", "__rpow__", "__and__", "__or__", "__ror__", "__xor__",
    "__rxor__", "__lshift__", "__rshift__", "__iand__", "__ior__", "__ixor__", "__ilshift__",
    "__irshift__",
}  # fmt: skip


Pushed = tuple[list[Rows], Callable[[list[Array]], Array]]


def push(node: Lazy, first: int, stop: int) -> Pushed:
    """What some rows of a lazy tensor are made of, and how.

    Args:
        node: no leaf, and no constant.
        first: the first row.
        stop: the row after the last one.

    Returns:
        Rows of other lazy tensors, and what makes the rows asked for of their values.

    """
    if shape_of(node):
        name = operation(node)
        found: Pushed | None = None
        if name == "eager_tuple_element":
            found = _element(node, first, stop)
        elif name in _ELEMENTWISE or getattr(node._func, "keeps_rows", False):
            found = _elementwise(node, first, stop)
        elif name in _RULES:
            found = _RULES[name](node, first, stop)
        if found is not None:
            return found
    return _all_of_it(node, first, stop)


def _all_of_it(node: Lazy, first: int, stop: int) -> Pushed:
    arguments = list(lazies(node._args))
    has_rows = bool(shape_of(node))

    def combine(values: list[Array]) -> Array:
        result = call(node, values)
        return result[first:stop] if has_rows else result

    return [whole(argument) for argument in arguments], combine


def _elementwise(node: Lazy, first: int, stop: int) -> Pushed | None:
    """Rows of every argument that has them; all of those that are the same for all rows."""
    rows, *inner = shape_of(node)
    parts = []
    for argument in lazies(node._args):
        shape = shape_of(argument)
        if len(shape) == len(inner) + 1 and shape[0] == rows:
            parts.append(Rows(argument, first, stop))
        elif len(shape) <= len(inner) or shape[0] == 1:
            parts.append(whole(argument))
        else:
            return None
    if not any(part.stop - part.first == stop - first for part in parts):
        return None  # all are spread over the rows, of which these are not all
    return parts, lambda values: call(node, values)


def _reshape(node: Lazy, first: int, stop: int) -> Pushed | None:
    """Elements in their order: rows of the argument that hold them, cut where they begin."""
    argument = node._args[0]
    if any(not isinstance(size, int | tuple | list) for size in node._args[1:]):
        return _elementwise(node, first, stop) if len(shape_of(node)) > 1 else None  # of a dtype
    if not shape_of(argument):
        return None
    size, old = prod(shape_of(node)[1:]), prod(shape_of(argument)[1:])
    start, end = first * size, stop * size
    part = Rows(argument, start // old, -(-end // old))
    skipped = start - part.first * old
    shape = (stop - first, *shape_of(node)[1:])

    def combine(values: list[Array]) -> Array:
        return values[0].reshape(-1)[skipped : skipped + end - start].reshape(shape)

    return [part], combine


def _stack(node: Lazy, first: int, stop: int) -> Pushed:
    arguments = list(node._args[0])
    if axis_of(node, 1, len(shape_of(node))) == 0:
        chosen = [whole(argument) for argument in arguments[first:stop]]
    else:
        chosen = [Rows(argument, first, stop) for argument in arguments]
    return chosen, lambda values: node._func(values, *node._args[1:], **node._kwargs)


def _concatenate(node: Lazy, first: int, stop: int) -> Pushed:
    arguments = list(node._args[0])
    if axis_of(node, 1, len(shape_of(node))) != 0:
        parts = [Rows(argument, first, stop) for argument in arguments]
    else:
        ends = list(accumulate(shape_of(argument)[0] for argument in arguments))
        parts = []
        for argument, end in zip(arguments, ends, strict=True):
            begin = end - shape_of(argument)[0]
            low, high = max(first, begin), min(stop, end)
            if low < high:
                parts.append(Rows(argument, low - begin, high - begin))
    return parts, lambda values: node._func(values, *node._args[1:], **node._kwargs)


def _element(node: Lazy, first: int, stop: int) -> Pushed | None:
    """An element of a tuple: of the pieces that a tensor is cut into."""
    piece = piece_of(node)
    if piece is None:
        return None
    argument, axis, start = piece
    if axis:
        return [Rows(argument, first, stop)], lambda values: call(node, values)
    return [Rows(argument, start + first, start + stop)], lambda values: values[0]


def piece_of(node: Lazy) -> tuple[Lazy, int, int] | None:
    """What a piece is one of, along which axis, and where on it it begins."""
    function, arguments = plain_call(node)
    name, place = name_of(function), node._args[1]
    if name not in ("chunk", "split", "split_with_sizes") or len(arguments) < 2:
        return None
    argument, sizes = arguments[:2]
    axis = int(arguments[2] if len(arguments) > 2 else node._kwargs.get("dim", 0))
    axis %= len(shape_of(argument))
    if isinstance(sizes, list | tuple):
        return argument, axis, sum(sizes[:place])
    size = -(-shape_of(argument)[axis] // sizes) if name == "chunk" else sizes
    return argument, axis, place * size


def _getitem(node: Lazy, first: int, stop: int) -> Pushed | None:
    argument, index = node._args
    if is_lazy(index):
        if len(shape_of(index)) != 1:
            return None
        parts = [whole(argument), Rows(index, first, stop)]
        return parts, lambda values: values[0][values[1]]
    wanted = index if isinstance(index, tuple) else (index,)
    if any(is_lazy(item) for item in wanted):
        return None
    real = sum(item is not None and item is not Ellipsis for item in wanted)
    head, *rest = wanted
    if head is Ellipsis:
        if real < len(shape_of(argument)) and None not in wanted:
            return [Rows(argument, first, stop)], lambda values: values[0][index]
        return None
    if isinstance(head, bool):
        return None
    if isinstance(head, int):
        row = head % shape_of(argument)[0]
        inner = (0, *rest)
        return [Rows(argument, row, row + 1)], lambda values: values[0][inner][first:stop]
    if not isinstance(head, slice):
        return None
    start, _, step = head.indices(shape_of(argument)[0])
    part = Rows(argument, start + first * step, start + (stop - 1) * step + 1)
    cut = (slice(None, None, step), *rest)
    return [part], lambda values: values[0][cut]


def _swap(node: Lazy, first: int, stop: int) -> Pushed | None:
    """Axes in another order, of which the first stays the first."""
    n_axes = len(shape_of(node))
    if _swapped_first(operation(node), node._args[1:], node._kwargs, n_axes) != 0:
        return None
    return [Rows(node._args[0], first, stop)], lambda values: call(node, values)


def _swapped_first(
    name: str, given: Sequence[Any], named: dict[str, Any], n_axes: int
) -> int | None:
    """Which axis of the argument becomes the first."""
    if name == "mT":
        return 0 if n_axes > 2 else 1
    if name in ("T", "t"):
        return n_axes - 1
    axes: list[Any] = [
        *given,
        *(value for key, value in named.items() if key.startswith(("dim", "axis"))),
    ]
    if len(axes) == 1 and isinstance(axes[0], list | tuple):
        axes = list(axes[0])
    if not axes or not all(isinstance(axis, int) for axis in axes):
        return None
    axes = [int(axis) % n_axes for axis in axes]
    if name == "permute" or len(axes) != 2:  # numpy's transpose takes all axes, too
        return int(axes[0])
    return int(axes[1 - axes.index(0)]) if 0 in axes else 0


def _unsqueeze(node: Lazy, first: int, stop: int) -> Pushed | None:
    if axis_of(node, 1, len(shape_of(node))) == 0:
        return None
    return [Rows(node._args[0], first, stop)], lambda values: call(node, values)


def _squeeze(node: Lazy, first: int, stop: int) -> Pushed | None:
    argument = node._args[0]
    if not shape_of(argument) or shape_of(argument)[0] != shape_of(node)[0]:
        return None
    shape = (stop - first, *shape_of(node)[1:])
    return [Rows(argument, first, stop)], lambda values: values[0].reshape(shape)


def _expand(node: Lazy, first: int, stop: int) -> Pushed | None:
    argument = node._args[0]
    if len(shape_of(argument)) != len(shape_of(node)) or shape_of(argument)[0] == 1:
        return None
    shape = (stop - first, *shape_of(node)[1:])
    return [Rows(argument, first, stop)], lambda values: values[0].expand(shape)


def _repeat_interleave(node: Lazy, first: int, stop: int) -> Pushed | None:
    argument, times = node._args[0], node._args[1] if len(node._args) > 1 else None
    n_axes = len(shape_of(argument))
    axis = node._args[2] if len(node._args) > 2 else node._kwargs.get("dim")
    if not isinstance(times, int) or axis is None:
        return None
    if axis % n_axes:
        return [Rows(argument, first, stop)], lambda values: call(node, values)
    start = first // times
    skipped = first - start * times

    def combine(values: list[Array]) -> Array:
        repeated = values[0].repeat_interleave(times, 0)
        return repeated[skipped : skipped + stop - first]

    return [Rows(argument, start, -(-stop // times))], combine


_RULES: dict[str, Callable[[Lazy, int, int], Pushed | None]] = {
    "reshape": _reshape,
    "view": _reshape,
    "flatten": _reshape,
    "stack": _stack,
    "cat": _concatenate,
    "concat": _concatenate,
    "concatenate": _concatenate,
    "__getitem__": _getitem,
    "transpose": _swap,
    "swapaxes": _swap,
    "swapdims": _swap,
    "permute": _swap,
    "T": _swap,
    "mT": _swap,
    "t": _swap,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "repeat_interleave": _repeat_interleave,
}
