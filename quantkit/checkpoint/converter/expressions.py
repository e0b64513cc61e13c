"""The converter's lazy tensors, evaluated some rows at a time. Runs in the converter's process.

A lazy tensor of llama.cpp's ``gguf/lazy.py`` knows the function that gives it and what that is
called with, down to leaves that are tensors of the checkpoint. `push` says which rows of its
arguments some of its rows are made of, for the functions that converters use; any other is
evaluated as a whole and cut. Nothing that is evaluated stays in the expression.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

Lazy = Any  # gguf.lazy.LazyBase, which only the converter's process can import
Array = Any  # torch.Tensor or numpy.ndarray


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor of the checkpoint: ``read(name, first, count)`` gives rows along its first axis."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[str, int, int], Array]

    def load(self) -> Array:
        """All of it."""
        return self.read(self.name, 0, self.shape[0] if self.shape else 1)


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows of a leaf, which counts rows over all but its last axis."""

    source: str
    row: int
    rows: int


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a lazy tensor; all of one that has no axes."""

    node: Lazy
    first: int
    stop: int


# What gives each number from numbers in the same place, or keeps their order within a row.
_CASTS = {
    "to", "float", "half", "bfloat16", "type", "contiguous", "clone", "copy", "detach", "numpy",
    "astype",
}  # fmt: skip
_ELEMENTWISE = {
    *_CASTS,
    "double", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "sigmoid", "softplus", "tanh",
    "reciprocal", "add", "sub", "mul", "div", "true_divide", "pow", "floor", "round",
    "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_right_shift", "bitwise_left_shift",
    "__neg__", "__abs__", "__invert__", "__pos__", "__add__", "__radd__", "__iadd__", "__sub__",
    "__rsub__", "__isub__", "__mul__", "__rmul__", "__imul__", "__truediv__", "__rtruediv__",
    "__floordiv__", "__mod__", "__pow__", "__rpow__", "__and__", "__or__", "__ror__", "__xor__",
    "__rxor__", "__lshift__", "__rshift__", "__iand__", "__ior__", "__ixor__", "__ilshift__",
    "__irshift__",
}  # fmt: skip
_RESHAPES = {"reshape", "view", "squeeze", "unsqueeze", "flatten"}


def is_lazy(value: object) -> bool:
    """Whether a value is a lazy tensor."""
    return hasattr(type(value), "_recurse_apply")


def is_leaf(node: Lazy) -> bool:
    """Whether a lazy tensor is one of the checkpoint."""
    return node._data is None and len(node._args) == 1 and isinstance(node._args[0], Leaf)


def shape_of(node: Lazy) -> tuple[int, ...]:
    """The shape of a lazy tensor."""
    return tuple(node._meta.shape)


def operation(node: Lazy) -> str:
    """The name of the function that gives a lazy tensor."""
    return name_of(node._func)


def name_of(function: Callable[..., Any]) -> str:
    """What a function is called, or the method that a lambda of ``gguf/lazy.py`` looks up."""
    code = getattr(function, "__code__", None)
    if code is not None and "name" in code.co_freevars:  # a method that was looked up by its name
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        return str(cells["name"].cell_contents)
    qualified = getattr(function, "__qualname__", "")
    if qualified.endswith("<lambda>"):  # defined within a method that is called what it does
        return str(qualified.split(".")[-3]) if qualified.count(".") >= 2 else qualified
    return str(getattr(function, "__name__", qualified))


def evaluate(part: Part, memo: dict[tuple[int, int, int], Array] | None = None) -> Array:
    """Some rows of a lazy tensor.

    Args:
        part: which.
        memo: what was evaluated before, for expressions that use one twice.

    """
    memo = {} if memo is None else memo
    node = part.node
    key = id(node), part.first, part.stop
    if key in memo:
        return memo[key]
    if node._data is not None:
        value = _cut(node._data, part)
    elif is_leaf(node):
        leaf = node._args[0]
        value = leaf.read(leaf.name, part.first, part.stop - part.first)
    else:
        parts, combine = push(node, part.first, part.stop)
        value = combine([evaluate(needed, memo) for needed in parts])
    expected = (part.stop - part.first, *shape_of(node)[1:]) if shape_of(node) else ()
    if getattr(value, "is_meta", False):
        raise ValueError(f"{operation(node)} gives no numbers")
    if tuple(value.shape) != expected:
        raise ValueError(
            f"rows {part.first} to {part.stop} of {operation(node)} have the shape "
            f"{tuple(value.shape)} instead of {expected}"
        )
    memo[key] = value
    return value


def reads(part: Part) -> Iterator[Part]:
    """The leaves, and their rows, that some rows are made of; each once."""
    seen: set[tuple[int, int, int]] = set()
    left = [part]
    while left:
        part = left.pop()
        key = id(part.node), part.first, part.stop
        if key in seen or part.node._data is not None:
            continue
        seen.add(key)
        if is_leaf(part.node):
            yield part
        else:
            left += push(part.node, part.first, part.stop)[0]


def leaves_of(nodes: Iterable[Lazy]) -> set[str]:
    """The tensors of the checkpoint that any of these are made of."""
    found: set[str] = set()
    seen: set[int] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if is_leaf(node):
            found.add(node._args[0].name)
        else:
            left += _lazies(node._args)
    return found


def whole(node: Lazy) -> Part:
    """All of a lazy tensor."""
    return Part(node, 0, shape_of(node)[0] if shape_of(node) else 1)


def _cut(value: Array, part: Part) -> Array:
    return value[part.first : part.stop] if shape_of(part.node) else value


Pushed = tuple[list[Part], Callable[[list[Array]], Array]]


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
    arguments = list(_lazies(node._args))
    has_rows = bool(shape_of(node))

    def combine(values: list[Array]) -> Array:
        result = _call(node, values)
        return result[first:stop] if has_rows else result

    return [whole(argument) for argument in arguments], combine


def _lazies(value: Any) -> Iterator[Lazy]:
    """The lazy tensors within arguments, in their order."""
    if is_lazy(value):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _lazies(item)


def _call(node: Lazy, values: Sequence[Array]) -> Array:
    """What the function gives with these values in the places of its lazy arguments."""
    function, arguments = _plain_call(node)
    name = name_of(function)
    if (name.startswith("__i") and name != "__invert__") or (name.endswith("_") and name[0] != "_"):
        values = [values[0].clone(), *values[1:]]  # others may need what it would change
    left = iter(values)
    result = function(*_replaced(arguments, left), **node._kwargs)
    if operation(node) == "eager_tuple_element":
        return result[node._args[1]]
    return result


def _plain_call(node: Lazy) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function and its arguments, also where it gives a tuple of which this is an element."""
    function = node._func
    if operation(node) != "eager_tuple_element":
        return function, node._args
    cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
    return cells["fn"].cell_contents, node._args[0][0]


def _replaced(value: Any, values: Iterator[Array]) -> Any:
    if is_lazy(value):
        return next(values)
    if getattr(value, "is_meta", False):
        raise ValueError("a constant has no numbers")
    if isinstance(value, list):
        return [_replaced(item, values) for item in value]
    if isinstance(value, tuple):
        return tuple(_replaced(item, values) for item in value)
    return value


def _elementwise(node: Lazy, first: int, stop: int) -> Pushed | None:
    """Rows of every argument that has them; all of those that are the same for all rows."""
    rows, *inner = shape_of(node)
    parts = []
    for argument in _lazies(node._args):
        shape = shape_of(argument)
        if len(shape) == len(inner) + 1 and shape[0] == rows:
            parts.append(Part(argument, first, stop))
        elif len(shape) <= len(inner) or shape[0] == 1:
            parts.append(whole(argument))
        else:
            return None
    if not any(part.stop - part.first == stop - first for part in parts):
        return None  # all are spread over the rows, of which these are not all
    return parts, lambda values: _call(node, values)


def _reshape(node: Lazy, first: int, stop: int) -> Pushed | None:
    """Elements in their order: rows of the argument that hold them, cut where they begin."""
    argument = node._args[0]
    if any(not isinstance(size, int | tuple | list) for size in node._args[1:]):
        return _elementwise(node, first, stop) if len(shape_of(node)) > 1 else None  # of a dtype
    if not shape_of(argument):
        return None
    size, old = prod(shape_of(node)[1:]), prod(shape_of(argument)[1:])
    start, end = first * size, stop * size
    part = Part(argument, start // old, -(-end // old))
    skipped = start - part.first * old
    shape = (stop - first, *shape_of(node)[1:])

    def combine(values: list[Array]) -> Array:
        return values[0].reshape(-1)[skipped : skipped + end - start].reshape(shape)

    return [part], combine


def _stack(node: Lazy, first: int, stop: int) -> Pushed:
    arguments = list(node._args[0])
    if _axis(node, 1, len(shape_of(node))) == 0:
        chosen = [whole(argument) for argument in arguments[first:stop]]
    else:
        chosen = [Part(argument, first, stop) for argument in arguments]
    return chosen, lambda values: node._func(values, *node._args[1:], **node._kwargs)


def _concatenate(node: Lazy, first: int, stop: int) -> Pushed:
    arguments = list(node._args[0])
    if _axis(node, 1, len(shape_of(node))) != 0:
        parts = [Part(argument, first, stop) for argument in arguments]
    else:
        ends = list(accumulate(shape_of(argument)[0] for argument in arguments))
        parts = []
        for argument, end in zip(arguments, ends, strict=True):
            begin = end - shape_of(argument)[0]
            low, high = max(first, begin), min(stop, end)
            if low < high:
                parts.append(Part(argument, low - begin, high - begin))
    return parts, lambda values: node._func(values, *node._args[1:], **node._kwargs)


def _axis(node: Lazy, place: int, n_axes: int) -> int:
    """The axis that a function is told by its argument at a place, or by name; the first if not."""
    given = node._args[place] if len(node._args) > place else None
    axis = node._kwargs.get("dim", node._kwargs.get("axis", 0 if given is None else given))
    return int(axis) % n_axes


def _element(node: Lazy, first: int, stop: int) -> Pushed | None:
    """An element of a tuple: of the pieces that a tensor is cut into."""
    piece = _piece(node)
    if piece is None:
        return None
    argument, axis, start = piece
    if axis:
        return [Part(argument, first, stop)], lambda values: _call(node, values)
    return [Part(argument, start + first, start + stop)], lambda values: values[0]


def _piece(node: Lazy) -> tuple[Lazy, int, int] | None:
    """What a piece is one of, along which axis, and where on it it begins."""
    function, arguments = _plain_call(node)
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
        parts = [whole(argument), Part(index, first, stop)]
        return parts, lambda values: values[0][values[1]]
    wanted = index if isinstance(index, tuple) else (index,)
    if any(is_lazy(item) for item in wanted):
        return None
    real = sum(item is not None and item is not Ellipsis for item in wanted)
    head, *rest = wanted
    if head is Ellipsis:
        if real < len(shape_of(argument)) and None not in wanted:
            return [Part(argument, first, stop)], lambda values: values[0][index]
        return None
    if isinstance(head, bool):
        return None
    if isinstance(head, int):
        row = head % shape_of(argument)[0]
        inner = (0, *rest)
        return [Part(argument, row, row + 1)], lambda values: values[0][inner][first:stop]
    if not isinstance(head, slice):
        return None
    start, _, step = head.indices(shape_of(argument)[0])
    part = Part(argument, start + first * step, start + (stop - 1) * step + 1)
    cut = (slice(None, None, step), *rest)
    return [part], lambda values: values[0][cut]


def _swap(node: Lazy, first: int, stop: int) -> Pushed | None:
    """Axes in another order, of which the first stays the first."""
    n_axes = len(shape_of(node))
    if _swapped_first(operation(node), node._args[1:], node._kwargs, n_axes) != 0:
        return None
    return [Part(node._args[0], first, stop)], lambda values: _call(node, values)


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
    if _axis(node, 1, len(shape_of(node))) == 0:
        return None
    return [Part(node._args[0], first, stop)], lambda values: _call(node, values)


def _squeeze(node: Lazy, first: int, stop: int) -> Pushed | None:
    argument = node._args[0]
    if not shape_of(argument) or shape_of(argument)[0] != shape_of(node)[0]:
        return None
    shape = (stop - first, *shape_of(node)[1:])
    return [Part(argument, first, stop)], lambda values: values[0].reshape(shape)


def _expand(node: Lazy, first: int, stop: int) -> Pushed | None:
    argument = node._args[0]
    if len(shape_of(argument)) != len(shape_of(node)) or shape_of(argument)[0] == 1:
        return None
    shape = (stop - first, *shape_of(node)[1:])
    return [Part(argument, first, stop)], lambda values: values[0].expand(shape)


def _repeat_interleave(node: Lazy, first: int, stop: int) -> Pushed | None:
    argument, times = node._args[0], node._args[1] if len(node._args) > 1 else None
    n_axes = len(shape_of(argument))
    axis = node._args[2] if len(node._args) > 2 else node._kwargs.get("dim")
    if not isinstance(times, int) or axis is None:
        return None
    if axis % n_axes:
        return [Part(argument, first, stop)], lambda values: _call(node, values)
    start = first // times
    skipped = first - start * times

    def combine(values: list[Array]) -> Array:
        repeated = values[0].repeat_interleave(times, 0)
        return repeated[skipped : skipped + stop - first]

    return [Part(argument, start, -(-stop // times))], combine


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


def matrix_of(node: Lazy, number: int) -> tuple[Lazy, list[Lazy]] | None:
    """One matrix of a stack as a lazy tensor of its own, and what is then done to its numbers.

    None where the matrices were not put together one by one.
    """
    after: list[Lazy] = []
    while not is_leaf(node) and node._data is None:
        name = operation(node)
        arguments = list(_lazies(node._args))
        if name == "stack" and _axis(node, 1, len(shape_of(node))) == 0:
            return arguments[number], after[::-1]
        if name not in _CASTS or len(arguments) != 1:
            return None
        after.append(node)
        node = arguments[0]
    return None


def apply(nodes: Sequence[Lazy], value: Array) -> Array:
    """What casts make of the rows of what they are of."""
    for node in nodes:
        value = _call(node, [value])
    return value


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
    argument, *others = list(_lazies(node._args))
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
    if _axis(node, 1, len(shape_of(node))) != 0:
        return None
    return _all_runs(node._args[0])


def _concatenate_of_sources(node: Lazy) -> list[Run] | None:
    shape = shape_of(node)
    axis = _axis(node, 1, len(shape))
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
    piece = _piece(node)
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
    **dict.fromkeys(_CASTS, _cast_of_sources),
    **dict.fromkeys(_RESHAPES, _reshape_of_sources),
    "stack": _stack_of_sources,
    "cat": _concatenate_of_sources,
    "concat": _concatenate_of_sources,
    "concatenate": _concatenate_of_sources,
    "__getitem__": _item_of_sources,
}
