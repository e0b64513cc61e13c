"""JSON, TOML and YAML that anybody may have written: parsed within bounds, decoded into types.

``parse_*`` give plain values of a text whose nesting and numbers are bounded; `decode` holds them
to a type. The bounds are far above what models have, far below what makes a parser slow, deep or
large.
"""

import json
import re
import tomllib
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from quantkit.core.errors import FileError
from quantkit.core.files import AGAIN, GIT_LFS_POINTER, SMALL, Raise, read_file
from quantkit.core.printable import one_line, quoted

T = TypeVar("T")

DEEPEST = 100
"""Containers within each other."""

LONGEST_NUMBER = 40
"""Digits of an integer: transformers writes 10**30 for "no limit"."""

MOST_YAML = 2**17
"""Bytes of YAML: model cards with results of hundreds of tests have a quarter of it."""

_MOST_YAML_EVENTS = 50_000
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS = dict(zip(b"[]{}", (1, -1, 1, -1), strict=True))
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(
    raw: bytes, name: object, *, error: Raise = FileError, fix: str = AGAIN, plain: bool = False
) -> Any:
    """The value of a JSON text.

    A byte order mark is skipped. NaN and Infinity are taken, because transformers writes them,
    unless it is to be ``plain`` JSON.

    Args:
        raw: the text.
        name: where it is from, the beginning of what is raised.
        error: the class of what is raised.
        fix: what the sentence says that the user should do.
        plain: take nothing but JSON as it is defined, without a key twice.

    Raises:
        error: it is not UTF-8 or not JSON, nested too deeply, or has a number or text that is none.

    """

    def refuse(why: str) -> Exception:
        return error(f"{name} {why}; {fix}.")

    def integer(digits: str) -> int:
        if len(digits) > LONGEST_NUMBER:  # Python spends quadratic time on long ones
            raise refuse(f"holds a number of {len(digits):,} digits")
        if plain and digits == "-0":  # which Python takes for a whole number
            raise refuse("holds the number -0")
        return int(digits)

    def constant(text: str) -> float:
        if plain:
            raise refuse(f"holds {text}, which is not JSON")
        return float(text.replace("Infinity", "inf"))

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise refuse(f"has the key {quoted(twice)} twice")
        return values

    if _depth(raw) > DEEPEST:
        raise refuse("is nested too deeply")
    try:
        text = raw.decode("utf-8-sig")
        value = json.loads(
            text,
            parse_int=integer,
            parse_constant=constant,
            object_pairs_hook=unique if plain else None,
        )
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise refuse("is not UTF-8") from None
    except UnicodeEncodeError:
        raise refuse("holds half of a surrogate pair, which is no text") from None
    except RecursionError:
        raise refuse("is nested too deeply") from None
    except ValueError as fault:
        if raw.startswith(GIT_LFS_POINTER):
            raise error(
                f"{name} is a Git LFS pointer and not the file; run `git lfs pull` in its folder."
            ) from None
        raise refuse(f"is not JSON ({one_line(str(fault), 120)})") from None
    return value


def parse_object(
    raw: bytes, name: object, *, error: Raise = FileError, fix: str = AGAIN
) -> dict[str, Any]:
    """The JSON object of a text.

    Raises:
        error: as `parse_json` does, or it is another value.

    """
    value = parse_json(raw, name, error=error, fix=fix)
    if not isinstance(value, dict):
        raise error(f"{name} is not a JSON object; {fix}.")
    return value


def read_object(
    path: Path, *, most: int = SMALL, error: Raise = FileError, fix: str = AGAIN
) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        error: as `read_file` and `parse_object` do.

    """
    return parse_object(
        read_file(path, most=most, error=error, fix=fix), path, error=error, fix=fix
    )


def decode(
    raw: bytes, kind: type[T], name: object, *, error: Raise = FileError, fix: str = AGAIN
) -> T:
    """A JSON text as a value of a type, such as a ``msgspec.Struct``.

    Raises:
        error: as `parse_json` does, or a value in it is of another type or out of its bounds.

    """
    return to_type(parse_json(raw, name, error=error, fix=fix), kind, name, error=error, fix=fix)


def to_type(
    value: Any, kind: type[T], name: object, *, error: Raise = FileError, fix: str = AGAIN
) -> T:
    """A value of JSON, TOML or YAML as one of a type; nothing is converted, no text into a number.

    Raises:
        error: a part of it is of another type or out of its bounds.

    """
    try:
        return msgspec.convert(value, kind, strict=True)
    except (msgspec.ValidationError, RecursionError, OverflowError) as fault:
        why = one_line(str(fault), 160)
        raise error(f"{name} is not laid out as expected ({why}); {fix}.") from None


def parse_toml(
    raw: bytes, name: object, *, error: Raise = FileError, fix: str = AGAIN
) -> dict[str, Any]:
    """The table of a TOML text. How long it may be is for whoever reads it to say.

    Raises:
        error: it is not UTF-8 or not TOML, or nested too deeply.

    """
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise error(f"{name} is not UTF-8; {fix}.") from None
    except RecursionError:
        raise error(f"{name} is nested too deeply; {fix}.") from None
    except ValueError as fault:
        why = one_line(str(fault), 120)
        raise error(f"{name} is not TOML ({why}); {fix}.") from None


def parse_yaml(raw: bytes, name: object, *, error: Raise = FileError, fix: str = AGAIN) -> Any:
    """The value of a YAML text of plain values. It may not repeat a part by an alias.

    Raises:
        error: it is too long or nested too deeply, uses aliases, or is not YAML.

    """
    import yaml

    def refuse(why: str) -> Exception:
        return error(f"{name} {why}; {fix}.")

    if len(raw) > MOST_YAML:
        raise refuse(f"has {len(raw):,} bytes of YAML, more than {MOST_YAML:,}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = raw.decode("utf-8-sig")
        depth = 0
        for count, event in enumerate(yaml.parse(text, Loader=loader)):
            if isinstance(event, yaml.AliasEvent):  # a kilobyte of them can stand for gigabytes
                raise refuse("uses YAML aliases (*name)")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST or count > _MOST_YAML_EVENTS:
                raise refuse("is nested too deeply or has too many values")
        return yaml.load(text, Loader=loader)  # noqa: S506 - a safe loader, in C where there is one
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError) as fault:
        why = one_line(next(iter(str(fault).splitlines()), type(fault).__name__), 120)
        raise refuse(f"is not YAML ({why})") from None


def _depth(raw: bytes) -> int:
    """How deeply containers of a JSON text lie within each other, without parsing it."""
    bare = raw.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NOT_STRUCTURE)
    marks = b"".join(bare.split(b'"')[::2])
    return max(accumulate(map(_STEPS.__getitem__, marks)), default=0)
