"""The converter's lazy tensors, evaluated some rows at a time. Runs in the converter's process.

`pushed.push` says which rows of its arguments some rows are made of. Nothing that is evaluated
stays in the expression.
"""

from collections.abc import Iterable, Iterator, Sequence

from quantkit.checkpoint.converter.nodes import (
    CASTS,
    Array,
    Lazy,
    Rows,
    axis_of,
    call,
    is_leaf,
    lazies,
    operation,
    shape_of,
)
from quantkit.checkpoint.converter.pushed import push


def evaluate(part: Rows, memo: dict[tuple[int, int, int], Array] | None = None) -> Array:
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


def reads(part: Rows) -> Iterator[Rows]:
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
            left += lazies(node._args)
    return found


def _cut(value: Array, part: Rows) -> Array:
    return value[part.first : part.stop] if shape_of(part.node) else value


def matrix_of(node: Lazy, number: int) -> tuple[Lazy, list[Lazy]] | None:
    """One matrix of a stack as a lazy tensor of its own, and what is then done to its numbers.

    None where the matrices were not put together one by one.
    """
    after: list[Lazy] = []
    while not is_leaf(node) and node._data is None:
        name = operation(node)
        arguments = list(lazies(node._args))
        if name == "stack" and axis_of(node, 1, len(shape_of(node))) == 0:
            return arguments[number], after[::-1]
        if name not in CASTS or len(arguments) != 1:
            return None
        after.append(node)
        node = arguments[0]
    return None


def apply(nodes: Sequence[Lazy], value: Array) -> Array:
    """What casts make of the rows of what they are of."""
    for node in nodes:
        value = call(node, [value])
    return value
