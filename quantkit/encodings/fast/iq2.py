"""IQ2_S, IQ2_XS and IQ2_XXS: groups of eight magnitudes on a grid.

After ``quantize_row_iq2_s_impl``, ``quantize_row_iq2_xs_impl`` and ``quantize_row_iq2_xxs_impl``
of ``ggml/src/ggml-quants.c``; the block layouts are those of ``ggml/src/ggml-common.h``.
"""

import numpy as np

from quantkit.encodings.fast.groups import (
    ALWAYS,
    OFF_GRID,
    make_room,
    scale_levels,
    search_groups,
    settle,
    take_magnitudes,
)
from quantkit.encodings.fast.halves import INFINITE, half_bits
from quantkit.encodings.fast.iq3 import clear, store_signs
from quantkit.encodings.fast.jit import compiled, inlined
from quantkit.encodings.fast.nearest import number_points
from quantkit.encodings.fast.search import FARTHEST_ROUNDED, LARGEST, SMALLEST, least, rounded
from quantkit.encodings.fast.simd import (
    LANES,
    any_lane,
    f32,
    i32,
    load,
    select,
    store,
    to_int,
)
from quantkit.encodings.fast.tiles import importance_tile, store_half, write_blocks
from quantkit.encodings.fast.weighing import sum_of_squares, weigh

_SMALLEST_S = 1e-8  # GROUP_MAX_EPS_IQ2_S
_STEP = np.float32(0.1)
_NUMERATORS = np.float32(5) + np.arange(-9, 10, dtype=np.float32) * _STEP
_NUMERATORS_XXS = np.float32(5) + np.arange(-6, 7, dtype=np.float32) * _STEP
_FUDGE_S = np.float32(0.9875)
_FARTHEST_LEVEL = 250.0  # below -256, levels in a byte wrap around more than once


@inlined
def _search_16(x, sub, smallest, even, lists, room, scales):
    """The scale of a sub-block of 16, and its points' numbers into the room; the odd lanes."""
    greatest, reach = take_magnitudes(x, 16 * sub, 16, even, room)
    blank = greatest < f32(smallest)
    scale, odd = search_groups(
        room, lists, _NUMERATORS, greatest, reach, greatest / f32(5), 16, 8, 3, OFF_GRID
    )
    store(scales, sub * LANES, settle(room, 16, 8, even, scale, blank))
    number_points(lists, room.chosen, 2)
    return odd & (greatest >= f32(smallest))


@inlined
def _store_scales(scales, halves, first_half):
    """Sixteen levels of four bits."""
    for quad in range(4):
        half = i32(0)
        for k in range(4):
            half = half | (to_int(load(scales, (4 * quad + k) * LANES)) << i32(4 * k))
        store_half(halves, first_half + quad, half)


@compiled
def encode_iq2_s(tiles, importance, lists, out, odd_blocks):
    """IQ2_S: 1024 points, any signs, sixteen scales."""
    room = make_room(len(_NUMERATORS), 2, 16)
    columns = np.empty(256 * LANES, np.float32)
    scales = np.empty(16 * LANES, np.float32)
    halves, flags = np.empty(41 * LANES, np.int32), np.empty(LANES, np.int32)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        if importance.size:
            importance_tile(importance, group, 256, columns)
        sum_x2 = sum_of_squares(x, 0, 256)
        sigma2 = f32(2) * sum_x2 / f32(256)
        odd = sum_x2 > f32(LARGEST * LARGEST)
        high = i32(0)
        for sub in range(16):
            if importance.size:
                weigh(x, 16 * sub, 16, sigma2, columns, room.weight)
            else:
                for i in range(16):
                    value = load(x, (16 * sub + i) * LANES)
                    store(room.weight, i * LANES, f32(0.25) * sigma2 + value * value)
            odd = odd | _search_16(x, sub, _SMALLEST_S, False, lists, room, scales)
            first, second = load(room.chosen, 0), load(room.chosen, LANES)
            half = (first & i32(255)) | ((second & i32(255)) << i32(8))
            store_half(halves, 1 + sub, half)
            store_half(halves, 17 + sub, load(room.signs, 0) | (load(room.signs, LANES) << i32(8)))
            bits = (first >> i32(8)) | ((second >> i32(8)) << i32(2))
            high = bits if sub % 4 == 0 else high | (bits << i32(sub % 4 * 4))
            store_half(halves, 33 + sub // 4, high)
        d, _, strange = scale_levels(scales, 16)
        d_bits = half_bits(d * f32(_FUDGE_S))
        store_half(halves, 0, d_bits)
        _store_scales(scales, halves, 37)
        odd = odd | strange | (d_bits >= i32(INFINITE))
        write_blocks(halves, 41, group, odd, out, odd_blocks, flags)


@compiled
def encode_iq2_xs(tiles, importance, lists, out, odd_blocks):
    """IQ2_XS: 512 points, an even number of signs in each group, sixteen scales."""
    room = make_room(len(_NUMERATORS), 2, 16)
    columns = np.empty(256 * LANES, np.float32)
    scales = np.empty(16 * LANES, np.float32)
    halves, flags = np.empty(37 * LANES, np.int32), np.empty(LANES, np.int32)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        importance_tile(importance, group, 256, columns)
        sum_x2 = sum_of_squares(x, 0, 256)
        sigma2 = sum_x2 / f32(256)
        odd = sum_x2 > f32(LARGEST * LARGEST)
        for sub in range(16):
            weigh(x, 16 * sub, 16, sigma2, columns, room.weight)
            odd = odd | _search_16(x, sub, SMALLEST, True, lists, room, scales)
            for k in range(2):
                half = load(room.chosen, k * LANES) | (load(room.signs, k * LANES) << i32(9))
                store_half(halves, 1 + 2 * sub + k, half)
        d, blank, strange = scale_levels(scales, 16)
        d_bits = half_bits(d)
        store_half(halves, 0, d_bits)
        _store_scales(scales, halves, 33)
        clear(halves, 37, blank)
        odd = odd | strange | (d_bits >= i32(INFINITE))
        write_blocks(halves, 37, group, odd, out, odd_blocks, flags)


@compiled
def encode_iq2_xxs(tiles, importance, lists, out, odd_blocks):
    """IQ2_XXS: 256 points, an even number of signs in each group, eight scales."""
    room = make_room(len(_NUMERATORS_XXS), 4, 32)
    columns = np.empty(256 * LANES, np.float32)
    scales, levels = np.empty(8 * LANES, np.float32), np.empty(32 * LANES, np.float32)
    halves, flags = np.empty(33 * LANES, np.int32), np.empty(LANES, np.int32)
    zero = f32(0)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        importance_tile(importance, group, 256, columns)
        sum_x2 = sum_of_squares(x, 0, 256)
        sigma2 = sum_x2 / f32(256)
        odd = sum_x2 > f32(LARGEST * LARGEST)
        for sub in range(8):
            weigh(x, 32 * sub, 32, sigma2, columns, room.weight)
            greatest, reach = take_magnitudes(x, 32 * sub, 32, True, room)
            first_scale, strange = _first_scale(room.x, room.weight, greatest, levels)
            far = first_scale * f32(3)
            blank = (greatest < f32(SMALLEST)) | (far <= zero)
            scale, odder = search_groups(
                room, lists, _NUMERATORS_XXS, far, reach, first_scale, 32, 8, 3, ALWAYS
            )
            store(scales, sub * LANES, settle(room, 32, 8, True, scale, blank))
            number_points(lists, room.chosen, 4)
            odd = odd | (strange & (greatest >= f32(SMALLEST)))
            odd = odd | (odder & (greatest >= f32(SMALLEST)) & (first_scale > zero))
            for pair in range(2):
                half = load(room.chosen, (2 * pair + 1) * LANES) << i32(8)
                half = load(room.chosen, 2 * pair * LANES) | half
                store_half(halves, 1 + 4 * sub + pair, half)
            store_signs(room, halves, 3 + 4 * sub)
        d, blank, strange = scale_levels(scales, 8)
        d_bits = half_bits(d)
        store_half(halves, 0, d_bits)
        for sub in range(8):
            half = load(halves, (4 + 4 * sub) * LANES)
            store_half(halves, 4 + 4 * sub, half | (to_int(load(scales, sub * LANES)) << i32(12)))
        clear(halves, 33, blank)
        odd = odd | strange | (d_bits >= i32(INFINITE))
        write_blocks(halves, 33, group, odd, out, odd_blocks, flags)


@inlined
def _in_a_byte(level):
    """As ggml stores a level without sign: below 0 it wraps around."""
    return select(level < f32(0), level + f32(256), level)


@inlined
def _first_scale(x, weight, greatest, levels):
    """``make_qp_quants`` of 32 magnitudes with four levels, some of which may be below 0.

    There levels that are stored for later are bytes, while those of a candidate are integers.

    Returns:
        scale, and the mask of odd lanes.

    """
    zero, one, top = f32(0), f32(1), f32(4)
    inverse = top / greatest
    scale = one / inverse
    best = zero
    odd = zero > one
    for i in range(32):
        value = load(x, i * LANES)
        level = rounded(inverse * value)
        odd = odd | (level < f32(-_FARTHEST_LEVEL))
        off = value - scale * _in_a_byte(level)
        best = best + load(weight, i * LANES) * off * off
    for candidate in range(-4, 5):
        if candidate == 0:
            continue
        this_inverse = f32(_STEP * np.float32(candidate) + np.float32(4)) / greatest
        this_scale = one / this_inverse
        error = zero
        for i in range(32):
            value = load(x, i * LANES)
            off = value - this_scale * least(rounded(this_inverse * value), top)
            error = error + load(weight, i * LANES) * off * off
        better = error < best
        best = select(better, error, best)
        inverse = select(better, this_inverse, inverse)
    sum_lx, sum_l2 = zero, zero
    for i in range(32):
        value, w = load(x, i * LANES), load(weight, i * LANES)
        level = least(rounded(inverse * value), top)
        store(levels, i * LANES, _in_a_byte(level))
        sum_lx = sum_lx + w * value * level
        sum_l2 = sum_l2 + w * level * level
    for _ in range(5):
        changed = zero > one
        for i in range(32):
            value, w = load(x, i * LANES), load(weight, i * LANES)
            level = load(levels, i * LANES)
            slx = sum_lx - w * value * level
            sl2 = sum_l2 - w * level * level
            free = (slx > zero) & (sl2 > zero)
            wanted = value * sl2 / slx
            new = least(rounded(wanted), top)
            odd = odd | (free & (wanted > f32(FARTHEST_ROUNDED)))
            odd = odd | (free & (wanted < f32(-_FARTHEST_LEVEL)))
            slx = slx + w * value * new
            sl2 = sl2 + w * new * new
            better = free & (new != level) & (slx * slx * sum_l2 > sum_lx * sum_lx * sl2)
            store(levels, i * LANES, select(better, _in_a_byte(new), level))
            sum_lx = select(better, slx, sum_lx)
            sum_l2 = select(better, sl2, sum_l2)
            changed = changed | better
        if not any_lane(changed):
            break
    return select(sum_l2 > zero, sum_lx / sum_l2, zero), odd
