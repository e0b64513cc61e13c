"""Byte sizes as people write them, and back."""

import re

from quantkit.core.errors import QuantkitError
from quantkit.core.printable import quoted

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
_MOST = 2**60
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


class SizeError(QuantkitError):
    """A size that cannot be read as a number of bytes."""


def parse_size(text: str) -> int:
    """Bytes in a size such as ``1GiB`` (2**30), ``45GB`` or ``45G`` (45 * 10**9), or ``4096``.

    Raises:
        SizeError: the text is no size, or is not positive.

    """
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise SizeError(f"{quoted(text)} is not a size; write it like 1GiB, 45GB or 500MB.")
    number = float(match[1])
    if not 0 < number * factor <= _MOST:
        raise SizeError(f"{quoted(text)} is not a size above zero and below {_MOST // 10**18} EB.")
    size = int(number * factor)
    if size <= 0:
        raise SizeError(f"{quoted(text)} is not a size above zero.")
    return size


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
