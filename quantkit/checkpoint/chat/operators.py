"""The engine's comparisons, concatenation and loops, as functions of values."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2.runtime import Undefined

from quantkit.checkpoint.chat.values import as_text, fail, kind_of
from quantkit.checkpoint.chat.watched import Content, Parts


def _equal(left: Any, right: Any) -> bool:
    """``a == b``: lists and objects that hold such are never equal, not even to themselves."""
    kinds = (kind_of(left), kind_of(right))
    if "undefined" in kinds:
        return kinds[0] == kinds[1]
    if isinstance(left, list | tuple | Mapping):
        if type(left) is not type(right) and not isinstance(left, Mapping):
            return False
        inner = left.values() if isinstance(left, Mapping) else left
        return not any(isinstance(item, list | dict) for item in inner) and bool(left == right)
    return bool(left == right)


def within(left: Any, right: Any) -> bool:
    """``a in b``."""
    if isinstance(right, Undefined):
        return False
    if isinstance(left, Undefined) or right is None:
        fail("Cannot perform operation in on undefined or null values")
    if isinstance(right, list | tuple):
        return any(_equal(left, item) for item in right)
    if isinstance(right, str) and not isinstance(left, str):
        fail("'in' expects a string")
    return left in right


_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "lt": lambda a, b: a < b,
    "lteq": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "gteq": lambda a, b: a >= b,
}


def compare(left: Any, operator: str, right: Any) -> bool:
    """``a < b`` and its like, by jinja2's name of the operator."""
    if operator in ("eq", "ne"):
        return _equal(left, right) is (operator == "eq")
    if operator in ("in", "notin"):
        return within(left, right) is (operator == "in")
    if not {kind_of(left), kind_of(right)} <= {"int", "float"}:
        fail("it orders numbers only")
    return _ORDERS[operator](left, right)


def joined(left: Any, right: Any) -> str:
    """``a ~ b``: what is not there, or None, is no text beside a text."""
    absent = [value is None or isinstance(value, Undefined) for value in (left, right)]
    if any(absent) and not any(isinstance(value, str) for value in (left, right)):
        fail("Cannot perform operation ~ on undefined or null values")
    if not any(isinstance(value, str) for value in (left, right)):
        fail("Unknown operator '~'")
    return "".join("" if no else as_text(v) for v, no in zip((left, right), absent, strict=True))


def each(value: Any, pairs: bool) -> Any:
    """What a loop goes over."""
    if isinstance(value, Content | Parts):
        value.ways.add("parts")
    if isinstance(value, Undefined):
        return []
    if isinstance(value, Mapping):
        return list(value.items()) if pairs else list(value)
    if not isinstance(value, list | tuple):
        fail("it loops over lists and objects only")
    return value
