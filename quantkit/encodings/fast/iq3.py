"""IQ3_S and IQ3_XXS: groups of four magnitudes on a grid, eight sub-blocks of 32 with a scale.

After ``quantize_row_iq3_s_impl`` and ``quantize_row_iq3_xxs_impl`` of
``ggml/src/ggml-quants.c``; the block layouts are those of ``ggml/src/ggml-common.h``.
"""

import numpy as np

from quantkit.encodings.fast.groups import (
    ANY_OFF_GRID,
    OFF_GRID,
    TINIEST,
    make_room,
    scale_levels,
    search_groups,
    settle,
    take_magnitudes,
)
from quantkit.encodings.fast.halves import INFINITE, half_bits
from quantkit.encodings.fast.jit import compiled, inlined
from quantkit.encodings.fast.nearest import number_points
from quantkit.encodings.fast.search import LARGEST
from quantkit.encodings.fast.simd import LANES, f32, i32, load, select, store, to_int
from quantkit.encodings.fast.tiles import importance_tile, store_half, write_blocks
from quantkit.encodings.fast.weighing import sum_of_squares, weigh, weigh_by_square

_SUB = 32
_SMALLEST = 1e-8  # GROUP_MAX_EPS_IQ3_XXS
_STEP = np.float32(0.2)
_NUMERATORS_S = np.float32(15) + np.arange(-9, 10, dtype=np.float32) * _STEP
_NUMERATORS_XXS = np.float32(15) + np.arange(-15, 16, dtype=np.float32) * _STEP
_FUDGE_S, _FUDGE_XXS = np.float32(1.033), np.float32(1.0125)


@inlined
def _search(x, sub, sigma2, importance, columns, lists, numerators, xxs, room, scales):
    """The scale of a sub-block, and the numbers of its points into the room.

    Returns:
        the masks of odd lanes and of those that ggml takes for zero.

    """
    zero = f32(0)
    if importance.size:
        weigh(x, _SUB * sub, _SUB, sigma2, columns, room.weight)
    else:
        weigh_by_square(x, _SUB * sub, _SUB, room.weight)
    greatest, reach = take_magnitudes(x, _SUB * sub, _SUB, xxs, room)
    blank = greatest < f32(_SMALLEST) if xxs else greatest <= zero
    again = OFF_GRID if xxs else ANY_OFF_GRID
    scale, odd = search_groups(
        room, lists, numerators, greatest, reach, greatest / f32(15), _SUB, 4, 8, again
    )
    store(scales, sub * LANES, settle(room, _SUB, 4, xxs, scale, blank))
    number_points(lists, room.chosen, 8)
    return (odd | (greatest < f32(TINIEST))) & (greatest > zero), blank


@inlined
def _store_numbers(room, halves, first_half):
    """The lower bytes of a sub-block's numbers; their ninth bits are returned."""
    high = i32(0)
    for pair in range(4):
        half = i32(0)
        for byte in range(2):
            number = load(room.chosen, (2 * pair + byte) * LANES)
            high = high | ((number >> i32(8)) << i32(2 * pair + byte))
            half = half | ((number & i32(255)) << i32(8 * byte))
        store_half(halves, first_half + pair, half)
    return high


@compiled
def encode_iq3_s(tiles, importance, lists, out, odd_blocks):
    """IQ3_S: 512 points, any signs."""
    room = make_room(len(_NUMERATORS_S), 8, _SUB)
    columns = np.empty(256 * LANES, np.float32)
    scales = np.empty(8 * LANES, np.float32)
    halves, flags = np.empty(55 * LANES, np.int32), np.empty(LANES, np.int32)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        if importance.size:
            importance_tile(importance, group, 256, columns)
        sum_x2 = sum_of_squares(x, 0, 256)
        sigma2 = f32(2) * sum_x2 / f32(256)
        odd = sum_x2 > f32(LARGEST * LARGEST)
        high, some_blank, all_blank = i32(0), i32(0), i32(1)
        for sub in range(8):
            strange, blank = _search(
                x, sub, sigma2, importance, columns, lists, _NUMERATORS_S, False, room, scales
            )
            odd = odd | strange
            some_blank = select(blank, i32(1), some_blank)
            all_blank = select(blank, all_blank, i32(0))
            bits = _store_numbers(room, halves, 1 + 4 * sub)
            high = bits if sub % 2 == 0 else high | (bits << i32(8))
            store_half(halves, 33 + sub // 2, high)
            for pair in range(2):
                half = load(room.signs, (2 * pair + 1) * LANES) << i32(8)
                store_half(halves, 37 + 2 * sub + pair, load(room.signs, 2 * pair * LANES) | half)
        d, _, strange = scale_levels(scales, 8)
        d_bits = half_bits(d * f32(_FUDGE_S))
        store_half(halves, 0, d_bits)
        for pair in range(2):
            half = i32(0)
            for k in range(4):
                half = half | (to_int(load(scales, (4 * pair + k) * LANES)) << i32(4 * k))
            store_half(halves, 53 + pair, half)
        # Behind a sub-block of zeros ggml writes the points of the others where its own belong.
        odd = odd | (some_blank != all_blank)
        odd = odd | strange | (d_bits >= i32(INFINITE))
        write_blocks(halves, 55, group, odd, out, odd_blocks, flags)


@compiled
def encode_iq3_xxs(tiles, importance, lists, out, odd_blocks):
    """IQ3_XXS: 256 points, an even number of signs in each eight weights."""
    room = make_room(len(_NUMERATORS_XXS), 8, _SUB)
    columns = np.empty(256 * LANES, np.float32)
    scales = np.empty(8 * LANES, np.float32)
    halves, flags = np.empty(49 * LANES, np.int32), np.empty(LANES, np.int32)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        if importance.size:
            importance_tile(importance, group, 256, columns)
        sum_x2 = sum_of_squares(x, 0, 256)
        sigma2 = f32(2) * sum_x2 / f32(256)
        odd = sum_x2 > f32(LARGEST * LARGEST)
        for sub in range(8):
            strange, _ = _search(
                x, sub, sigma2, importance, columns, lists, _NUMERATORS_XXS, True, room, scales
            )
            odd = odd | strange
            _store_numbers(room, halves, 1 + 4 * sub)
            store_signs(room, halves, 33 + 2 * sub)
        d, blank, strange = scale_levels(scales, 8)
        d_bits = half_bits(d * f32(_FUDGE_XXS))
        store_half(halves, 0, d_bits)
        for sub in range(8):
            half = load(halves, (34 + 2 * sub) * LANES)
            store_half(halves, 34 + 2 * sub, half | to_int(load(scales, sub * LANES)) << i32(12))
        clear(halves, 49, blank)
        odd = odd | strange | (d_bits >= i32(INFINITE))
        write_blocks(halves, 49, group, odd, out, odd_blocks, flags)


@inlined
def store_signs(room, halves, first_half):
    """Four times seven signs as two halves, the upper four bits of which are free."""
    word = load(room.signs, 0)
    for k in range(1, 4):
        word = word | (load(room.signs, k * LANES) << i32(7 * k))
    store_half(halves, first_half, word & i32(0xFFFF))
    store_half(halves, first_half + 1, word >> i32(16))


@inlined
def clear(halves, n, blank):
    """All bits of blank blocks."""
    for half in range(n):
        store_half(halves, half, select(blank, i32(0), load(halves, half * LANES)))
