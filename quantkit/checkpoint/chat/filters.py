"""The engine's filters, which are its methods, too (``common/jinja/value.cpp``)."""

import re
from collections.abc import Callable
from typing import Any

from jinja2.runtime import Undefined

from quantkit.checkpoint.chat.checks import find_test
from quantkit.checkpoint.chat.values import Missing, as_text, fail, kind_of, to_bytes, to_json
from quantkit.checkpoint.chat.watched import Content, Parts

_SPACES = " \t\n\v\f\r"


def _default(value: Any, *rest: Any, boolean: Any = False) -> Any:
    if isinstance(value, str):
        other, boolean = rest[0] if rest else "", rest[1] if len(rest) > 1 else boolean
        return other if boolean and not value else value
    if not rest:
        fail("Function 'default' expected between 2 and 3 arguments")
    boolean = rest[1] if len(rest) > 1 else boolean
    missing = not value if boolean else value is None or isinstance(value, Undefined)
    return rest[0] if missing else value


def _ascii(change: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: "".join(change(c) if c.isascii() else c for c in text)


def _capitalize(text: str) -> str:
    return _ascii(str.upper)(text[:1]) + _ascii(str.lower)(text[1:])


def _title(text: str) -> str:
    return "".join(
        part if part.isspace() else _capitalize(part)
        for part in re.split(r"([ \t\n\v\f\r]+)", text)
    )


def _starts(text: str, part: Any) -> bool:
    return text.startswith(part) if isinstance(part, str) else bool(fail("expected a string"))


def _ends(text: str, part: Any) -> bool:
    return text.endswith(part) if isinstance(part, str) else bool(fail("expected a string"))


def _split(text: str, by: Any = " ", most: int = -1) -> list[str]:
    return text.split(by, most)


def _rsplit(text: str, by: Any = " ", most: int = -1) -> list[str]:
    return text.rsplit(by, most)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    if count > 0:
        fail("String replace with count argument not implemented")
    return text.replace(old, new)


def _format(text: str, *values: Any) -> str:
    given = iter(values)
    if re.search(r"\{(?!\})", text):
        fail("format() only supports simple '{}' placeholders")
    return re.sub(r"\{\}", lambda _: as_text(next(given)), text)


def _int(text: str, default: Any = 0, base: int = 10) -> int:
    found = re.match(r"\s*[+-]?\d+", text) if base == 10 else None
    return int(found[0]) if found else int(default)


def _float(text: str, default: Any = 0.0) -> float:
    found = re.match(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text)
    return float(found[0]) if found else float(default)


def _indent(text: str, width: Any = 4, first: Any = False, blank: Any = False) -> str:
    pad = width if isinstance(width, str) else " " * width
    lines = text.split("\n")
    ends = text.endswith("\n")
    made: list[str] = []
    for number, line in enumerate(lines[:-1] if ends else lines):
        padded = first if not number else bool(line) or blank
        made.append(pad + line if padded else line)
    return "\n".join(made) + (("\n" + (pad if blank else "")) if ends else "")


def _not_implemented(*_arguments: Any, **_named: Any) -> Any:
    return fail("not implemented")


def _member(item: Any, name: Any, default: Any) -> Any:
    """An element's attribute, which the engine does not count as looked at."""
    if isinstance(item, dict):
        return dict.get(item, name, default)
    if isinstance(item, list | tuple):
        index = int(name) if isinstance(name, str) and name.isdigit() else name
        if isinstance(index, int) and -len(item) <= index < len(item):
            return item[index]
    return default


def _attributes(keep: bool) -> Callable[..., list[Any]]:
    def chosen(values: Any, attribute: str, *rest: Any) -> list[Any]:
        made = []
        for item in values:
            value = item if len(rest) == 1 else _member(item, attribute, Missing())
            if not rest:
                wanted = bool(value)
            else:
                name = attribute if len(rest) == 1 else rest[0]
                wanted = find_test(name)(value, rest[-1])
            if wanted is keep:
                made.append(item)
        return made

    return chosen


def _join(values: Any, d: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        values = [_member(item, attribute, Missing()) for item in values]
    if any(kind_of(value) not in ("str", "int", "float") for value in values):
        fail("join() can only join arrays of strings or numerics")
    return as_text(d).join(map(as_text, values))


def _map(values: Any, *arguments: Any, attribute: Any = None, default: Any = None) -> list[Any]:
    if arguments or attribute is None:
        fail("map: filter-mapping not implemented")
    missing = Missing() if default is None else default
    return [_member(item, attribute, missing) for item in values]


def _sort(
    values: Any, reverse: Any = False, case_sensitive: Any = False, attribute: Any = None
) -> list[Any]:
    del case_sensitive  # it always is

    def key(item: Any) -> Any:
        return item if attribute is None else _member(item, attribute, "")

    return sorted(values, key=key, reverse=bool(reverse))


def _dictsort(
    value: Any, case_sensitive: Any = False, by: Any = "key", reverse: Any = False
) -> dict[Any, Any]:
    del case_sensitive
    place = 1 if by == "value" else 0
    return dict(sorted(value.items(), key=lambda pair: pair[place], reverse=bool(reverse)))


def _append(values: list[Any], item: Any) -> list[Any]:
    values.append(item)
    return values


def _first(values: Any) -> Any:
    return values[0] if values else Missing()


def _last(values: Any) -> Any:
    return values[-1] if values else Missing()


_NUMBER: dict[str, Callable[..., Any]] = {
    "default": _default, "abs": abs, "int": int, "float": float, "safe": to_json,
    "string": to_json, "tojson": to_json,
}  # fmt: skip


_OF_NONE = ["items", "map", "reject", "rejectattr", "select", "selectattr", "unique"]


_NOTHING: dict[str, Any] = {
    **dict.fromkeys(
        [
            "capitalize",
            "join",
            "lower",
            "replace",
            "safe",
            "string",
            "strip",
            "title",
            "truncate",
            "upper",
        ],
        "",
    ),
    **dict.fromkeys(("length", "sum", "wordcount"), 0),
}


_BUILTINS: dict[str, dict[str, Callable[..., Any]]] = {
    "undefined": {
        "default": _default,
        **{name: lambda *_a, _v=value, **_k: _v for name, value in _NOTHING.items()},
        **{name: lambda *_a, **_k: Missing() for name in ("first", "last", "max", "min")},
        **{name: lambda *_a, **_k: [] for name in [*_OF_NONE, "list", "reverse", "sort"]},
    },
    "none": {
        "default": _default, "tojson": to_json, "string": lambda _: "None",
        "safe": lambda _: "None", **{name: lambda *_a, **_k: [] for name in _OF_NONE},
    },
    "bool": {
        "default": _default, "int": int, "float": float, "safe": str, "string": str,
        "tojson": to_json,
    },
    "int": _NUMBER,
    "float": _NUMBER,
    "str": {
        "default": _default, "upper": _ascii(str.upper), "lower": _ascii(str.lower),
        "strip": lambda text, chars=_SPACES: text.strip(chars),
        "lstrip": lambda text, chars=_SPACES: text.lstrip(chars),
        "rstrip": lambda text, chars=_SPACES: text.rstrip(chars),
        "title": _title, "capitalize": _capitalize, "length": lambda text: len(to_bytes(text)),
        "startswith": _starts, "endswith": _ends,
        "split": _split, "rsplit": _rsplit, "replace": _replace, "format": _format, "int": _int,
        "float": _float, "string": str, "safe": str, "tojson": to_json, "indent": _indent,
        "join": _not_implemented, "slice": _not_implemented,
    },
    "list": {
        "default": _default, "list": list, "first": _first, "last": _last, "length": len,
        "selectattr": _attributes(True), "select": _attributes(True),
        "rejectattr": _attributes(False), "reject": _attributes(False), "join": _join,
        "string": as_text, "tojson": to_json, "map": _map, "append": _append,
        "pop": lambda values, index=-1: values.pop(index), "sort": _sort,
        "reverse": lambda values: list(values)[::-1],
        "min": lambda values, **_k: min(values) if values else Missing(),
        "max": lambda values, **_k: max(values) if values else Missing(),
        "unique": _not_implemented, "slice": _not_implemented,
    },
    "dict": {
        "get": lambda value, key, default=None: value.get(key, default),
        "keys": lambda value: list(value.keys()), "values": lambda value: list(value.values()),
        "items": lambda value: list(value.items()), "tojson": to_json, "string": as_text,
        "length": len, "dictsort": _dictsort, "join": _not_implemented,
    },
    "function": {},
}  # fmt: skip
"""Filters and methods, which are the same to the engine, by the kind of their first argument."""


_ALIASES = {"count": "length", "d": "default", "e": "escape", "trim": "strip"}


_AS_TEXT = frozenset(["capitalize", "lower", "replace", "strip", "title", "upper", "wordcount"])


def builtins_of(value: Any) -> dict[str, Callable[..., Any]]:
    """What can be done with a value, by name."""
    return _BUILTINS["none" if value is None else kind_of(value)]


def find_filter(name: str) -> Callable[..., Any]:
    """A filter by name; one that the engine lacks for a value fails where it is used."""
    name = _ALIASES.get(name, name)

    def filtered(value: Any, *arguments: Any, **named: Any) -> Any:
        coerced = not arguments and not named and name in _AS_TEXT
        if coerced and not isinstance(value, str | Undefined):
            value = as_text(value)
        if name == "selectattr" and isinstance(value, Content | Parts):
            value.ways.add("parts")
        if name not in builtins_of(value):
            what = "None" if value is None else kind_of(value)
            fail(f"it has no filter {name!r} for a value of kind {what}")
        return builtins_of(value)[name](value, *arguments, **named)

    return filtered
