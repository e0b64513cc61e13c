"""The converter's lazy tensors: what they are made of. Runs in the converter's process.

A lazy tensor of llama.cpp's ``gguf/lazy.py`` knows the function that gives it and what that is
called with, down to leaves that are tensors of the checkpoint.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
class Rows:
    """Rows of a lazy tensor; all of one that has no axes."""

    node: Lazy
    first: int
    stop: int


# What gives each number from numbers in the same place, or keeps their order within a row.
CASTS = {
    "to", "float", "half", "bfloat16", "type", "contiguous", "clone", "copy", "detach", "numpy",
    "astype",
}  # fmt: skip


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


def whole(node: Lazy) -> Rows:
    """All of a lazy tensor."""
    return Rows(node, 0, shape_of(node)[0] if shape_of(node) else 1)


def lazies(value: Any) -> Iterator[Lazy]:
    """The lazy tensors within arguments, in their order."""
    if is_lazy(value):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from lazies(item)


def call(node: Lazy, values: Sequence[Array]) -> Array:
    """What the function gives with these values in the places of its lazy arguments."""
    function, arguments = plain_call(node)
    name = name_of(function)
    if (name.startswith("__i") and name != "__invert__") or (name.endswith("_") and name[0] != "_"):
        values = [values[0].clone(), *values[1:]]  # others may need what it would change
    left = iter(values)
    result = function(*_replaced(arguments, left), **node._kwargs)
    if operation(node) == "eager_tuple_element":
        return result[node._args[1]]
    return result


def plain_call(node: Lazy) -> tuple[Callable[..., Any], tuple[Any, ...]]:
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


def axis_of(node: Lazy, place: int, n_axes: int) -> int:
    """The axis that a function is told by its argument at a place, or by name; the first if not."""
    given = node._args[place] if len(node._args) > place else None
    axis = node._kwargs.get("dim", node._kwargs.get("axis", 0 if given is None else given))
    return int(axis) % n_axes
