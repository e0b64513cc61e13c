"""Options as a program gives them: of the right types and within bounds, or refused."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from quantkit.core.errors import PlanError
from quantkit.core.printable import quoted

T = TypeVar("T")


def checked(options: T, kind: type[T]) -> T:
    """The same options, with paths where texts stand for them.

    Raises:
        PlanError: it is no such value, or a field has another type or is out of its bounds.

    """
    if not (isinstance(options, kind) and is_dataclass(options)):
        raise PlanError(f"{quoted(options)} is not a {kind.__name__}; give one.")
    given = {field.name: getattr(options, field.name) for field in fields(options)}
    whole = {
        name: checked(value, type(value)) if _is_ours(value) else value
        for name, value in given.items()
    }
    try:
        return msgspec.convert(whole, kind, dec_hook=_as_path)
    except msgspec.ValidationError as error:
        expected, _, place = str(error).partition(" - at `$.")
        name = re.split(r"\W", place)[0]
        raise PlanError(
            f"{kind.__name__}.{name} cannot be {quoted(given.get(name))}: "
            f"{expected[0].lower()}{expected[1:].replace('array', 'tuple')}."
        ) from None


def require_at_least(least: int, **given: int | None) -> None:
    """Refuse numbers below a bound; None is fine.

    Raises:
        PlanError: a number is less, or is not a whole number.

    """
    for name, value in given.items():
        if value is not None and (type(value) is not int or value < least):
            raise PlanError(f"{name} cannot be {quoted(value)}; give a whole number from {least}.")


def _is_ours(value: Any) -> bool:
    """Whether it is options itself, and of plain values: one is told remarks by a function."""
    return is_dataclass(value) and not isinstance(value, type) and not hasattr(value, "say")


def _as_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError(f"Expected `{kind.__name__}`, got `{type(value).__name__}`")
