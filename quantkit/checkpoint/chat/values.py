"""The engine's kinds of values, and their texts."""

import json
from collections.abc import Mapping
from typing import Any

from jinja2.exceptions import TemplateRuntimeError
from jinja2.runtime import ChainableUndefined, Undefined
from jinja2.utils import Namespace


class Missing(ChainableUndefined):
    """What is not there: its members are not there either, it has no elements and is no text."""

    def __html__(self) -> str:
        return ""


def fail(what: str) -> Any:
    """Refuse to go on.

    Raises:
        TemplateRuntimeError: always.

    """
    raise TemplateRuntimeError(what)


def kind_of(value: Any) -> str:
    """The engine's name for a value's type; ``function`` for anything else, None included."""
    for kind, types in _KINDS:
        if isinstance(value, types):
            return kind
    return "function"


_KINDS: tuple[tuple[str, Any], ...] = (
    ("undefined", Undefined),
    ("bool", bool),
    ("int", int),
    ("float", float),
    ("str", str),
    ("list", list | tuple),
    ("dict", Mapping | Namespace),
)


def as_text(value: Any) -> str:
    """A value as text: ``as_string``."""
    if isinstance(value, Undefined):
        return fail("Undefined is not a string value")  # type: ignore[no-any-return] # it raises
    if isinstance(value, float):
        digits = f"{value:.6f}".rstrip("0")
        return digits + "0" if digits.endswith(".") else digits
    if isinstance(value, list | tuple):
        inner = ", ".join(map(_repr, value))
        if isinstance(value, tuple):
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        return f"[{inner}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_repr(k)}: {_repr(v)}" for k, v in value.items()) + "}"
    return str(value)


def _repr(value: Any) -> str:
    if isinstance(value, str):
        return _json_of(value, -1, ", ", ": ") if "'" in value else f"'{value}'"
    return "Undefined" if isinstance(value, Undefined) else as_text(value)


def printed(value: Any) -> str:
    """What ``{{ value }}`` leaves: nothing of None and objects, of lists their elements."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return as_text(value)
    if isinstance(value, list | tuple):
        return "".join(map(printed, value))
    return ""


def _json_of(value: Any, indent: int, between: str, after_key: str, level: int = 0) -> str:
    if value is None or isinstance(value, Undefined):
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, list | tuple | Mapping):
        return "null"
    brackets, parts = "[]", []
    if isinstance(value, Mapping):
        brackets = "{}"
        for key, item in value.items():
            shown = _json_of(item, indent, between, after_key, level + 1)
            parts.append(_json_of(as_text(key), indent, between, after_key) + after_key + shown)
    else:
        parts = [_json_of(item, indent, between, after_key, level + 1) for item in value]
    if not parts:
        return brackets
    line = "\n" if indent >= 0 else ""
    pad, inner = " " * (max(indent, 0) * level), " " * (max(indent, 0) * (level + 1))
    body = (between + line + inner).join(parts)
    return brackets[0] + line + inner + body + line + pad + brackets[1]


def to_json(
    value: Any,
    ensure_ascii: Any = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: Any = False,
) -> str:
    """The filter ``tojson``, with the engine's separators and numbers."""
    if sort_keys:
        fail("tojson sort_keys=true not implemented")
    width = indent if isinstance(indent, int) and not isinstance(indent, bool) else -1
    between, after_key = ", " if width < 0 else ",", ": "
    if isinstance(separators, list | tuple):
        between, after_key = (
            [*separators, between, after_key][:2] if separators else (between, ": ")
        )
    text = _json_of(value, width, between, after_key)
    return (
        "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text) if ensure_ascii else text
    )


def to_bytes(text: str) -> bytes:
    """Text as the engine counts and slices it."""
    return text.encode("utf-8", "surrogatepass")


def from_bytes(raw: bytes) -> str:
    """Text of bytes that may begin or end inside a character."""
    return raw.decode("utf-8", "replace")
