"""The parts of an i-quant's block, apart and together again: scale, multiples, points, signs.

The layouts are those of ``ggml/src/ggml-common.h``. Every bit of a block belongs to one part, so
that what was taken apart and is put together is the same.
"""

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# ``scales``: float16 bits of each block's scale. ``levels``: of its sub-blocks, whose scales are
# ``2 * level + 1`` parts of it. ``numbers``: the grid points of its groups. ``signs``: a bit for
# each of eight weights, set where a weight is negative; of IQ1 1 where a centre is below 0, of each
# sub-block (IQ1_S) or group (IQ1_M). Shapes (blocks, how many per block).
Parts = namedtuple("Parts", "scales levels numbers signs")

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.integer[Any]]
_BITS, _PAIR, _QUAD = np.arange(8), np.arange(0, 8, 4), np.arange(0, 8, 2)
_SEVENS = np.arange(0, 28, 7)
_THREES, _NIBBLES = np.arange(0, 12, 3, dtype=np.uint16), np.arange(0, 16, 4, dtype=np.uint16)


def _split(packed: Bytes, shifts: NDArray[np.int64], mask: int) -> Bytes:
    """Fields of a few bits, several in a byte, the lowest first."""
    fields = (packed[..., np.newaxis] >> shifts.astype(np.uint8)) & np.uint8(mask)
    return fields.reshape(len(packed), -1)


def _join(fields: Bytes, shifts: NDArray[np.int64]) -> Bytes:
    """The bytes of ``_split``."""
    wide = fields.reshape(len(fields), -1, len(shifts)) << shifts.astype(np.uint8)
    return np.asarray(np.bitwise_or.reduce(wide, axis=-1))


def _add_eighth(sevens: Numbers) -> Bytes:
    """Seven signs, and an eighth that makes the number of negative ones even."""
    odd = sevens ^ (sevens >> 4)
    odd = odd ^ (odd >> 2)
    odd = (odd ^ (odd >> 1)) & 1
    return (sevens | (odd << 7)).astype(np.uint8)


def _take_words(words: NDArray[np.uint32]) -> tuple[Bytes, Bytes]:
    """Levels and signs of sub-blocks of 32, four times seven signs below a level."""
    sevens = (words[..., np.newaxis] >> _SEVENS.astype(np.uint32)) & np.uint32(127)
    return (words >> 28).astype(np.uint8), _add_eighth(sevens.reshape(len(words), -1))


def _make_words(levels: Bytes, signs: Bytes) -> NDArray[np.uint32]:
    sevens = (signs & 127).astype(np.uint32).reshape(len(signs), -1, 4)
    words = np.bitwise_or.reduce(sevens << _SEVENS.astype(np.uint32), axis=-1)
    return np.asarray(words | (levels.astype(np.uint32) << 28))


def _take_iq3_s(raw: Bytes) -> tuple[Bytes, Numbers, Bytes]:
    high = _split(raw[:, 66:74], _BITS, 1).astype(np.uint16)
    return _split(raw[:, 106:], _PAIR, 15), raw[:, 2:66] | (high << 8), raw[:, 74:106]


def _put_iq3_s(raw: Bytes, parts: Parts) -> None:
    raw[:, 2:66], raw[:, 74:106] = parts.numbers & 255, parts.signs
    raw[:, 66:74] = _join((parts.numbers >> 8).astype(np.uint8), _BITS)
    raw[:, 106:] = _join(parts.levels, _PAIR)


def _take_iq3_xxs(raw: Bytes) -> tuple[Bytes, Numbers, Bytes]:
    levels, signs = _take_words(np.ascontiguousarray(raw[:, 66:]).view(np.uint32))
    return levels, raw[:, 2:66].astype(np.uint16), signs


def _put_iq3_xxs(raw: Bytes, parts: Parts) -> None:
    raw[:, 2:66] = parts.numbers
    raw[:, 66:] = _make_words(parts.levels, parts.signs).view(np.uint8)


def _take_iq2_s(raw: Bytes) -> tuple[Bytes, Numbers, Bytes]:
    high = _split(raw[:, 66:74], _QUAD, 3).astype(np.uint16)
    return _split(raw[:, 74:], _PAIR, 15), raw[:, 2:34] | (high << 8), raw[:, 34:66]


def _put_iq2_s(raw: Bytes, parts: Parts) -> None:
    raw[:, 2:34], raw[:, 34:66] = parts.numbers & 255, parts.signs
    raw[:, 66:74] = _join((parts.numbers >> 8).astype(np.uint8), _QUAD)
    raw[:, 74:] = _join(parts.levels, _PAIR)


def _take_iq2_xs(raw: Bytes) -> tuple[Bytes, Numbers, Bytes]:
    both = np.ascontiguousarray(raw[:, 2:66]).view(np.uint16)
    return _split(raw[:, 66:], _PAIR, 15), both & 511, _add_eighth(both >> 9)


def _put_iq2_xs(raw: Bytes, parts: Parts) -> None:
    both = parts.numbers | ((parts.signs & 127).astype(np.uint16) << 9)
    raw[:, 2:66] = both.view(np.uint8)
    raw[:, 66:] = _join(parts.levels, _PAIR)


def _take_iq2_xxs(raw: Bytes) -> tuple[Bytes, Numbers, Bytes]:
    eights = raw[:, 2:].reshape(len(raw), 8, 8)
    words = np.ascontiguousarray(eights[:, :, 4:]).view(np.uint32).reshape(len(raw), 8)
    levels, signs = _take_words(words)
    return levels, eights[:, :, :4].reshape(len(raw), 32).astype(np.uint16), signs


def _put_iq2_xxs(raw: Bytes, parts: Parts) -> None:
    eights = raw[:, 2:].reshape(len(raw), 8, 8)
    words = _make_words(parts.levels, parts.signs)
    eights[:, :, :4] = parts.numbers.reshape(len(raw), 8, 4)
    eights[:, :, 4:] = words.view(np.uint8).reshape(len(raw), 8, 4)
    raw[:, 2:] = eights.reshape(len(raw), 64)


def _take_iq1_s(raw: Bytes) -> tuple[Bytes, Numbers, Bytes]:
    words = np.ascontiguousarray(raw[:, 34:]).view(np.uint16)
    high = (words[..., np.newaxis] >> _THREES) & 7
    numbers = raw[:, 2:34] | (high.reshape(len(raw), 32) << 8)
    return ((words >> 12) & 7).astype(np.uint8), numbers, (words >> 15).astype(np.uint8)


def _put_iq1_s(raw: Bytes, parts: Parts) -> None:
    raw[:, 2:34] = parts.numbers & 255
    high = (parts.numbers >> 8).reshape(len(raw), 8, 4) << _THREES
    top = parts.levels | (parts.signs << 3)
    words = np.bitwise_or.reduce(high, axis=-1) | (top.astype(np.uint16) << 12)
    raw[:, 34:] = words.view(np.uint8)


def _take_iq1_m(raw: Bytes) -> tuple[Bytes, Numbers, Bytes]:
    words = np.ascontiguousarray(raw[:, 48:]).view(np.uint16)
    levels = (words[..., np.newaxis] >> _THREES) & 7
    high = _split(raw[:, 32:48], _PAIR, 15)
    numbers = raw[:, :32] | ((high & 7).astype(np.uint16) << 8)
    return levels.reshape(len(raw), 16).astype(np.uint8), numbers, (high >> 3).astype(np.uint8)


def _put_iq1_m(raw: Bytes, parts: Parts) -> None:
    raw[:, :32] = parts.numbers & 255
    raw[:, 32:48] = _join((parts.numbers >> 8).astype(np.uint8) | (parts.signs << 3), _PAIR)
    levels = parts.levels.astype(np.uint16).reshape(len(raw), 4, 4) << _THREES
    scale = ((parts.scales.reshape(-1, 1) >> _NIBBLES) & 15) << 12
    raw[:, 48:] = (np.bitwise_or.reduce(levels, axis=-1) | scale).view(np.uint8)


_TAKE: dict[str, Callable[[Bytes], tuple[Bytes, Numbers, Bytes]]] = {
    "IQ3_S": _take_iq3_s,
    "IQ3_XXS": _take_iq3_xxs,
    "IQ2_S": _take_iq2_s,
    "IQ2_XS": _take_iq2_xs,
    "IQ2_XXS": _take_iq2_xxs,
    "IQ1_S": _take_iq1_s,
    "IQ1_M": _take_iq1_m,
}
_PUT: dict[str, Callable[[Bytes, Parts], None]] = {
    "IQ3_S": _put_iq3_s,
    "IQ3_XXS": _put_iq3_xxs,
    "IQ2_S": _put_iq2_s,
    "IQ2_XS": _put_iq2_xs,
    "IQ2_XXS": _put_iq2_xxs,
    "IQ1_S": _put_iq1_s,
    "IQ1_M": _put_iq1_m,
}


def take_apart(raw: Bytes, name: str) -> Parts:
    """The parts of blocks, shape (blocks, bytes), of the format called ``name``."""
    levels, numbers, signs = _TAKE[name](raw)
    if name == "IQ1_M":  # four bits of it in each of the last four words
        words = np.ascontiguousarray(raw[:, 48:]).view(np.uint16) >> 12
        scales = np.bitwise_or.reduce(words << _NIBBLES, axis=-1)
    else:
        scales = np.ascontiguousarray(raw[:, :2]).view(np.uint16).reshape(-1)
    return Parts(scales, *map(np.ascontiguousarray, (levels, numbers, signs)))


def put_together(raw: Bytes, name: str, parts: Parts) -> None:
    """Write parts into blocks, as ``take_apart`` gave them."""
    if name != "IQ1_M":
        raw[:, :2] = parts.scales.reshape(-1, 1).view(np.uint8)
    _PUT[name](raw, parts)
