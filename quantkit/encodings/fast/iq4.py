"""IQ4_NL and IQ4_XS: levels from a table of sixteen values, closer to each other near 0.

After ``quantize_row_iq4_nl_impl`` of ``ggml/src/ggml-quants.c``.
"""

from itertools import pairwise

import numpy as np

from quantkit.encodings.fast.halves import INFINITE, half_bits
from quantkit.encodings.fast.jit import compiled, inlined
from quantkit.encodings.fast.search import (
    LARGEST,
    SMALLEST,
    farthest,
    level_between,
)
from quantkit.encodings.fast.simd import (
    LANES,
    absolute,
    f32,
    i32,
    load,
    negative,
    select,
    store,
    to_int,
)
from quantkit.encodings.fast.tiles import importance_tile, store_half, write_blocks
from quantkit.encodings.fast.weighing import sum_of_squares, weigh

BLOCK = 32
_TRIES = 7
# kvalues_iq4nl of ggml/src/ggml-common.h
VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)


def _first_above(below: np.float32, above: np.float32) -> np.float32:
    """The least float32 that ``best_index_int8`` rounds up to ``above``.

    It takes the lower neighbour where ``x - below < above - x``. Both differences are rounded, so
    that the change does not always come at the middle; but each rounds monotonically, so there is
    one change.
    """
    low, high = below, above
    while True:
        middle = np.float32((np.float64(low) + np.float64(high)) / 2)
        if middle in (low, high):
            break
        if middle - below < above - middle:
            low = middle
        else:
            high = middle
    return high


THRESHOLDS = np.array([_first_above(low, high) for low, high in pairwise(VALUES)])


@inlined
def nearest_value(x):
    """The nearest level of the table."""
    value = f32(VALUES[0])
    for k in range(15):
        value = select(x >= f32(THRESHOLDS[k]), f32(VALUES[k + 1]), value)
    return value


@inlined
def nearest_index(x):
    """Its index."""
    index = f32(0)
    for k in range(15):
        index = select(x >= f32(THRESHOLDS[k]), f32(k + 1), index)
    return to_int(index)


@inlined
def products(x, start, weight, inverse):
    """Weighted sums of level times value and of level squared, with levels from this scale."""
    sum_qx, sum_q2 = f32(0), f32(0)
    for i in range(BLOCK):
        value = load(x, (start + i) * LANES)
        q = nearest_value(inverse * value)
        wq = load(weight, i * LANES) * q
        sum_qx = sum_qx + wq * value
        sum_q2 = sum_q2 + wq * q
    return sum_qx, sum_q2


@inlined
def _search(x, start, weight):
    """Scale of one block, and its greatest magnitude."""
    zero = f32(0)
    far, size = farthest(x, start, BLOCK)
    blank = size < f32(SMALLEST)
    inverse = f32(1) / (negative(far) / f32(VALUES[0]))
    sum_qx, sum_q2 = products(x, start, weight, inverse)
    scale = select(sum_q2 > zero, sum_qx / sum_q2, zero)
    best = scale * sum_qx
    for attempt in range(-_TRIES, _TRIES + 1):
        inverse = f32(np.float32(attempt) + VALUES[0]) / far
        sum_qx, sum_q2 = products(x, start, weight, inverse)
        better = (sum_q2 > zero) & (sum_qx * sum_qx > best * sum_q2)
        scale = select(better, sum_qx / sum_q2, scale)
        best = select(better, scale * sum_qx, best)
    return select(blank, zero, scale), size


@inlined
def _weigh(x, start, importance, sigma2, columns, weight):
    if importance is not None:
        weigh(x, start, BLOCK, sigma2, columns, weight)
    else:
        for i in range(BLOCK):
            value = load(x, (start + i) * LANES)
            store(weight, i * LANES, value * value)


@inlined
def _index_and_pack(x, start, inverse, first_half, halves):
    """Nibbles of a block, the first 16 weights in the lower."""
    for pair in range(8):
        half = i32(0)
        for byte in range(2):
            i = start + 2 * pair + byte
            low = nearest_index(inverse * load(x, i * LANES))
            high = nearest_index(inverse * load(x, (i + 16) * LANES))
            half = half | ((low | (high << i32(4))) << i32(8 * byte))
        store_half(halves, first_half + pair, half)


@inlined
def inverse_of(x):
    """1 / x, or 0 for 0."""
    return select(x == f32(0), f32(0), f32(1) / x)


@inlined
def _infinite(half):
    return (half & i32(INFINITE)) == i32(INFINITE)


@compiled
def encode_iq4_nl(tiles, importance, out, odd_blocks):
    """IQ4_NL: blocks of 32 with one float16 scale."""
    width = tiles.shape[1] // LANES
    columns = np.empty(width * LANES, np.float32)
    weight = np.empty(BLOCK * LANES, np.float32)
    halves = np.empty(9 * (width // BLOCK) * LANES, np.int32)
    flags = np.empty(LANES, np.int32)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        if importance is not None:
            importance_tile(importance, group, width, columns)
        odd = f32(0) < f32(0)
        for block in range(width // BLOCK):
            start = BLOCK * block
            sigma2 = sum_of_squares(x, start, BLOCK) * f32(2 / BLOCK)
            _weigh(x, start, importance, sigma2, columns, weight)
            scale, size = _search(x, start, weight)
            bits = half_bits(scale)
            odd = odd | (size > f32(LARGEST)) | _infinite(bits)
            store_half(halves, 9 * block, bits)
            _index_and_pack(x, start, inverse_of(scale), 9 * block + 1, halves)
        write_blocks(halves, 9 * (width // BLOCK), group, odd, out, odd_blocks, flags)


@compiled
def encode_iq4_xs(tiles, importance, out, odd_blocks):
    """IQ4_XS: blocks of 256 with eight scales of six bits."""
    columns = np.empty(256 * LANES, np.float32)
    weight = np.empty(BLOCK * LANES, np.float32)
    scales = np.empty(8 * LANES, np.float32)
    halves = np.empty(68 * LANES, np.int32)
    flags = np.empty(LANES, np.int32)
    zero = f32(0)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        if importance is not None:
            importance_tile(importance, group, 256, columns)
        sigma2 = sum_of_squares(x, 0, 256) * f32(2 / 256)
        far, far_size = zero, zero
        odd = zero < zero
        for block in range(8):
            _weigh(x, BLOCK * block, importance, sigma2, columns, weight)
            scale, size = _search(x, BLOCK * block, weight)
            odd = odd | (size > f32(LARGEST))
            store(scales, block * LANES, scale)
            beyond = absolute(scale) > far_size
            far_size = select(beyond, absolute(scale), far_size)
            far = select(beyond, scale, far)
        d = negative(far) / f32(32)
        inverse = inverse_of(d)
        bits = half_bits(d)
        store_half(halves, 0, bits)
        high = i32(0)
        for pair in range(2):
            low = i32(0)
            for k in range(4):
                block = 4 * pair + k
                level = level_between(inverse * load(scales, block * LANES), f32(-32), f32(31))
                _index_and_pack(x, BLOCK * block, inverse_of(d * level), 4 + 8 * block, halves)
                stored = to_int(level) + i32(32)
                low = low | ((stored & i32(15)) << i32(4 * k))
                high = high | ((stored >> i32(4)) << i32(2 * block))
            store_half(halves, 2 + pair, low)
        store_half(halves, 1, high)
        write_blocks(halves, 68, group, odd | _infinite(bits), out, odd_blocks, flags)
