"""Byte sizes as people write them, and back."""

import re

from quantkit.core.errors import QuantkitError

_FACTORS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "m": 10**6,
    "mb": 10**6,
    "g": 10**9,
    "gb": 10**9,
    "t": 10**12,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_FEWEST_BARE = 10**6  # a number of bytes that somebody may write out
_MOST = 10**18
_LONGEST = 40  # characters
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


class SizeError(QuantkitError):
    """A size that cannot be read as a number of bytes."""


def parse_size(text: str) -> int:
    """Bytes in a size such as ``1GiB`` (2**30), ``45GB`` or ``45G`` (45 * 10**9), or ``4000000``.

    A number without a unit counts bytes, and a small one was meant otherwise.

    Raises:
        SizeError: the text is not a size, is not positive, or cannot be meant.

    """
    number, unit = split_size(text)
    size = int(number * _FACTORS[unit])
    if size <= 0:
        raise SizeError(f"{shown(text)} is not a size above zero.")
    if not unit and size < _FEWEST_BARE:
        raise SizeError(f"{shown(text)} has no unit; write it like {size}GB or {size}MB.")
    if size > _MOST:
        raise SizeError(f"{shown(text)} is more than any disk holds; write it like 1GiB or 45GB.")
    return size


def split_size(text: str) -> tuple[float, str]:
    """The number of a size, and its unit in lower case, which may be empty.

    Raises:
        SizeError: the text is not a size.

    """
    match = _SIZE.fullmatch(text) if len(text) <= _LONGEST else None
    unit = match[2].lower() if match else None
    if match is None or unit not in _FACTORS:
        raise SizeError(f"{shown(text)} is not a size; write it like 1GiB, 45GB or 500MB.")
    return float(match[1]), unit


def shown(text: str) -> str:
    """What a user typed, for a sentence: quoted, and cut where it is long."""
    return repr(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


def format_size(n_bytes: int) -> str:
    """Decimal size for people, three figures: ``85.6 GB``. The unit that the Hub shows."""
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def format_count(count: int) -> str:
    """A count of parameters for people, three figures: ``141B``, ``22.2B``, ``6.3M``."""
    value = float(count)
    for unit in ("", "K", "M", "B"):
        if abs(value) < 999.5:
            return f"{value:.0f}" if not unit else f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"


def counted(number: int, thing: str) -> str:
    """A number of things whose plural ends in s: ``1 quant``, ``24 quants``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
