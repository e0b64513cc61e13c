"""Q4_0, Q4_1, Q5_0 and Q5_1 with importance: blocks of 32 weights with scales of their own.

After ``quantize_row_q*_impl`` of ``ggml/src/ggml-quants.c``. Without importance these take no
search, and ggml itself encodes them at the speed of memory.
"""

import numpy as np

from quantkit.encodings.fast.halves import INFINITE, half_bits
from quantkit.encodings.fast.jit import compiled, inlined
from quantkit.encodings.fast.search import (
    LARGEST,
    level_between,
    search_min_scale,
    search_scale,
)
from quantkit.encodings.fast.simd import LANES, absolute, f32, i32, load, select, store, to_int
from quantkit.encodings.fast.tiles import importance_tile, store_half, write_blocks
from quantkit.encodings.fast.weighing import weigh

BLOCK = 32


@compiled
def row_means(rows, means):
    """The mean of squares of each row, added up from left to right."""
    for row in range(rows.shape[0]):
        total = np.float32(0)
        for column in range(rows.shape[1]):
            total += rows[row, column] * rows[row, column]
        means[row] = total / np.float32(rows.shape[1])


@inlined
def _means_of_group(means, group, per_row, lanes):
    for lane in range(LANES):
        lanes[lane] = means[min((group * LANES + lane) // per_row, means.size - 1)]
    return load(lanes, 0)


@inlined
def _pack(levels, first_half, five_bits, halves):
    """Nibbles, the first 16 weights in the lower; before them, if wanted, the fifth bits."""
    if five_bits:
        for half in range(2):
            high = i32(0)
            for k in range(16):
                level = to_int(load(levels, (16 * half + k) * LANES))
                high = high | (((level >> i32(4)) & i32(1)) << i32(k))
            store_half(halves, first_half + half, high)
    start = first_half + (2 if five_bits else 0)
    for pair in range(8):
        half = i32(0)
        for byte in range(2):
            low = to_int(load(levels, (2 * pair + byte) * LANES)) & i32(15)
            high = to_int(load(levels, (2 * pair + byte + 16) * LANES)) & i32(15)
            half = half | ((low | (high << i32(4))) << i32(8 * byte))
        store_half(halves, start + pair, half)


@inlined
def _symmetric(x, start, weight, nmax, levels):
    """One block with a scale alone: its float16 bits, and the mask of odd lanes."""
    zero, bottom, top, middle = f32(0), f32(-nmax), f32(nmax - 1), f32(nmax)
    scale, inverse, blank = search_scale(x, start, weight, 0, BLOCK, nmax, 1, levels)
    far = zero
    for i in range(BLOCK):
        value = load(x, (start + i) * LANES)
        far = select(absolute(value) > far, absolute(value), far)
        level = level_between(inverse * value, bottom, top) + middle
        store(levels, i * LANES, select(blank, zero, level))
    return half_bits(scale), far > f32(LARGEST)


@inlined
def _with_minimum(x, start, weight, nmax, levels):
    """One block with scale and minimum: their float16 bits, and the mask of odd lanes."""
    zero, top = f32(0), f32(nmax)
    scale, minimum, _, inverse, low, odd = search_min_scale(
        x, start, weight, BLOCK, nmax, np.float32(-0.9), np.float32(0.05), 36, False, levels
    )
    for i in range(BLOCK):
        value = load(x, (start + i) * LANES)
        store(levels, i * LANES, level_between(inverse * (value - low), zero, top))
    return half_bits(scale), half_bits(minimum), odd


@inlined
def _encode(tiles, importance, means, nmax, has_minimum, out, odd_blocks):
    width = tiles.shape[1] // LANES
    per_row = importance.size // width
    columns = np.empty(width * LANES, np.float32)
    weight = np.empty(BLOCK * LANES, np.float32)
    levels = np.empty(BLOCK * LANES, np.float32)
    halves = np.empty(12 * (width // BLOCK) * LANES, np.int32)
    flags = np.empty(LANES, np.int32)
    lanes = np.empty(LANES, np.float32)
    five_bits = nmax in (16, 31)
    n_halves = 9 + (1 if has_minimum else 0) + (2 if five_bits else 0)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        importance_tile(importance, group, width, columns)
        sigma2 = _means_of_group(means, group, per_row, lanes)
        odd = f32(0) < f32(0)
        for block in range(width // BLOCK):
            first = block * n_halves
            weigh(x, BLOCK * block, BLOCK, sigma2, columns, weight)
            if has_minimum:
                scale, minimum, strange = _with_minimum(x, BLOCK * block, weight, nmax, levels)
                store_half(halves, first + 1, minimum)
                strange = strange | ((minimum & i32(INFINITE)) == i32(INFINITE))
                _pack(levels, first + 2, five_bits, halves)
            else:
                scale, strange = _symmetric(x, BLOCK * block, weight, nmax, levels)
                _pack(levels, first + 1, five_bits, halves)
            store_half(halves, first, scale)
            odd = odd | strange | ((scale & i32(INFINITE)) == i32(INFINITE))
        n_lane = n_halves * (width // BLOCK)
        write_blocks(halves, n_lane, group, odd, out, odd_blocks, flags)


@compiled
def encode_q4_0(tiles, importance, means, out, odd_blocks):
    """Q4_0: a scale, four bits a weight."""
    _encode(tiles, importance, means, 8, False, out, odd_blocks)


@compiled
def encode_q4_1(tiles, importance, means, out, odd_blocks):
    """Q4_1: scale and minimum, four bits a weight."""
    _encode(tiles, importance, means, 15, True, out, odd_blocks)


@compiled
def encode_q5_0(tiles, importance, means, out, odd_blocks):
    """Q5_0: a scale, five bits a weight."""
    _encode(tiles, importance, means, 16, False, out, odd_blocks)


@compiled
def encode_q5_1(tiles, importance, means, out, odd_blocks):
    """Q5_1: scale and minimum, five bits a weight."""
    _encode(tiles, importance, means, 31, True, out, odd_blocks)
