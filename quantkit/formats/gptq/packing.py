"""The four tensors of a linear layer in AutoGPTQ's format (see `stored`), made and read.

Source: ``QuantLinear.pack`` in ``qlinear_cuda_old.py`` of auto-gptq 0.7.1. Its three-bit layout,
ten levels and a split one, is the same plain string of bits as the others, lowest bit first.
"""

from dataclasses import dataclass
from math import gcd
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.gptq.stored import WORD

Weights: TypeAlias = NDArray[np.float32]

_SLAB = 512  # rows unpacked at once


@dataclass(frozen=True, slots=True)
class Packed:
    """The four tensors of one linear layer."""

    qweight: NDArray[np.int32]
    qzeros: NDArray[np.int32]
    scales: NDArray[np.float16]
    g_idx: NDArray[np.int32]


def pack(
    levels: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32],
    bits: int,
) -> Packed:
    """Pack one matrix.

    Args:
        levels: (out, in); quickest where its columns lie together.
        scales: (out, groups), values that float16 holds; groups are equally wide.
        zeros: (out, groups), whole numbers from 1.
        bits: per level.

    """
    columns, groups = levels.shape[1], scales.shape[1]
    return Packed(
        qweight=_pack_columns(levels.T, bits),
        qzeros=np.ascontiguousarray(_pack_columns((zeros - 1).astype(np.uint8), bits).T),
        scales=np.ascontiguousarray(scales.T.astype(np.float16)),
        g_idx=(np.arange(columns, dtype=np.int32) // (columns // groups)).astype(np.int32),
    )


def unpack(packed: Packed, bits: int, first: int = 0, count: int | None = None) -> Weights:
    """Rows of the weights, float32 (count, in): scale * (level - zero)."""
    stop = packed.qweight.shape[1] if count is None else first + count
    levels = _unpack_rows(np.ascontiguousarray(packed.qweight[:, first:stop].T), bits)
    zeros = _unpack_rows(packed.qzeros, bits)[:, first:stop].astype(np.float32) + 1
    scales = packed.scales[:, first:stop].astype(np.float32)
    out = np.empty(levels.shape, np.float32)
    for start in range(0, len(levels), _SLAB):
        rows = slice(start, start + _SLAB)
        zero, scale = zeros[:, rows].T[:, packed.g_idx], scales[:, rows].T[:, packed.g_idx]
        out[rows] = (levels[rows] - zero) * scale
    return out


def _pack_columns(values: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Columns of small numbers as columns of words, lowest bits first."""
    count = WORD // gcd(bits, WORD)  # of numbers that fill words
    runs = values.reshape(-1, count, values.shape[1])
    words = np.zeros((len(runs), count * bits // WORD, values.shape[1]), np.uint32)
    for number in range(count):
        word, shift = divmod(number * bits, WORD)
        part = runs[:, number].astype(np.uint32)
        words[:, word] |= part << shift
        if shift + bits > WORD:
            words[:, word + 1] |= part >> (WORD - shift)
    return words.reshape(-1, values.shape[1]).view(np.int32)


def _unpack_rows(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    rows, columns = words.shape[0], words.shape[1] * WORD // bits
    values = np.empty((rows, columns), np.uint8)
    for start in range(0, rows, _SLAB):
        part = np.ascontiguousarray(words[start : start + _SLAB], "<i4").view(np.uint8)
        split = np.unpackbits(part, axis=-1, bitorder="little").reshape(len(part), columns, bits)
        values[start : start + _SLAB] = np.packbits(split, axis=-1, bitorder="little")[..., 0]
    return values
