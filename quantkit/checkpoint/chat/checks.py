"""The engine's tests: what follows ``is``."""

from collections.abc import Callable
from typing import Any

from jinja2.runtime import Undefined

from quantkit.checkpoint.chat.operators import within
from quantkit.checkpoint.chat.values import fail, kind_of
from quantkit.checkpoint.chat.watched import Content, Parts


def _is_string(value: Any) -> bool:
    if isinstance(value, Content | Parts):
        value.ways.add("is string")
    return isinstance(value, str)


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, bool | int) and type(value) is type(other):
        return bool(value == other)
    return value is other and not isinstance(value, Undefined | str)


_EACH = ("dict", "list", "str", "undefined")


_TESTS: dict[str, Callable[..., bool]] = {
    "boolean": lambda v: isinstance(v, bool),
    "callable": lambda v: kind_of(v) == "function" and v is not None,
    "odd": lambda v: v % 2 != 0,
    "even": lambda v: v % 2 == 0,
    "false": lambda v: v is False,
    "true": lambda v: v is True,
    "divisibleby": lambda v, by: v % by == 0,
    "string": _is_string,
    "integer": lambda v: kind_of(v) == "int",
    "float": lambda v: kind_of(v) == "float",
    "number": lambda v: kind_of(v) in ("int", "float"),
    "iterable": lambda v: kind_of(v) in _EACH,
    "sequence": lambda v: kind_of(v) in _EACH,
    "mapping": lambda v: kind_of(v) == "dict",
    "lower": lambda v: not any(c.isascii() and c.isupper() for c in v),
    "upper": lambda v: not any(c.isascii() and c.islower() for c in v),
    "none": lambda v: v is None,
    "defined": lambda v: not isinstance(v, Undefined),
    "undefined": lambda v: isinstance(v, Undefined),
    **dict.fromkeys(("eq", "equalto"), lambda v, other: v == other),
    **dict.fromkeys(("gt", "greaterthan"), lambda v, other: v > other),
    **dict.fromkeys(("lt", "lessthan"), lambda v, other: v < other),
    "ge": lambda v, other: v >= other,
    "ne": lambda v, other: v != other,
    "in": lambda v, other: within(v, other),
    "test": lambda v: v in _TESTS,
    "sameas": _same,
}


def find_test(name: str) -> Callable[..., bool]:
    """A test by name; one that the engine lacks fails where it is used."""

    def tested(value: Any, *arguments: Any) -> bool:
        if name not in _TESTS:
            fail(f"it has no test {name!r}")
        return _TESTS[name](value, *arguments)

    return tested
