"""The K-quants whose sub-blocks have a scale and a minimum: Q2_K, Q4_K and Q5_K.

After ``quantize_row_q*_K_ref`` (no importance) and ``quantize_row_q*_K_impl`` (with importance) of
``ggml/src/ggml-quants.c``; the block layouts are those of ``ggml/src/ggml-common.h``.
"""

import numpy as np

from quantkit.encodings.fast.best import improve_min_scale
from quantkit.encodings.fast.halves import INFINITE, half_bits, half_value
from quantkit.encodings.fast.jit import compiled, inlined
from quantkit.encodings.fast.k_blocks import (
    WIDTH,
    level_at,
    make_room,
    next_tile,
    pack_high_bit,
    pack_two_bits,
    pair_of,
    scale_level,
)
from quantkit.encodings.fast.search import (
    FARTHEST_ROUNDED,
    least,
    level_between,
    most,
    rounded,
    search_min_scale,
    search_positive_scale,
)
from quantkit.encodings.fast.simd import (
    LANES,
    absolute,
    any_lane,
    f32,
    i32,
    load,
    negative,
    select,
    sqrt,
    store,
    to_int,
)
from quantkit.encodings.fast.tiles import store_half, write_blocks
from quantkit.encodings.fast.weighing import sum_of_squares, weigh

# First candidate and step of the searches, relative to the largest level.
_FIRST_2, _FIRST_4, _FIRST_5, _STEP = map(np.float32, (-0.5, -1, -0.5, 0.1))


_FIRST_WEIGHTED, _STEP_WEIGHTED = map(np.float32, (-0.9, 0.05))


@inlined
def _weigh_by_size(x, start, n, offset, weight):
    for i in range(n):
        store(weight, i * LANES, offset + absolute(load(x, (start + i) * LANES)))


@inlined
def _weigh_subblock(x, start, n, importance, mad, sigma2, room, weight):
    """What an error in each element of a sub-block with a minimum counts."""
    if importance is not None:
        weigh(x, start, n, sigma2, room.importance, weight)
    elif mad:
        _weigh_by_size(x, start, n, f32(0), weight)
    else:
        mean = sqrt(sum_of_squares(x, start, n) / f32(n))
        _weigh_by_size(x, start, n, mean, weight)


@inlined
def _search_subblocks(x, importance, n, nmax, first, delta, steps, mad, sigma2, room):
    """Scale and minimum of every sub-block into the room; the mask of odd lanes."""
    zero = f32(0)
    odd = zero < zero
    for j in range(WIDTH // n):
        _weigh_subblock(x, n * j, n, importance, mad, sigma2, room, room.weight)
        scale, minimum, sum_w, inverse, low, strange = search_min_scale(
            x, n * j, room.weight, n, nmax, first, delta, steps, mad, room.levels
        )
        # A negative scale wraps around in ggml's unsigned levels.
        odd = odd | strange | (scale < zero)
        store(room.scales, j * LANES, scale)
        store(room.mins, j * LANES, negative(minimum))
        store(room.sums, j * LANES, sum_w)
        store(room.inverses, j * LANES, inverse)
        store(room.lows, j * LANES, low)
    return odd


@inlined
def _share_of_greatest(values, n, nmax, levels):
    """Levels of scales as parts of the greatest; the scale of the scales."""
    zero, top = f32(0), f32(nmax)
    greatest = zero
    for j in range(n):
        greatest = most(load(values, j * LANES), greatest)
    inverse = select(greatest > zero, top / greatest, zero)
    for j in range(n):
        store(levels, j * LANES, least(rounded(inverse * load(values, j * LANES)), top))
    return greatest / top


@inlined
def _encode_min_scale(
    x, importance, n, nmax, scale_max, first, delta, steps, mad, squares, room, scratch
):
    """Levels of a block with scales and minima: Q2_K, Q4_K and Q5_K.

    Args:
        x: the weights.
        importance: of the columns, or None.
        n: elements per sub-block.
        nmax: the largest level.
        scale_max: the largest multiple of the block's scales.
        first: of the candidates without importance, relative to ``nmax``.
        delta: between candidates without importance.
        steps: the last candidate without importance.
        mad: whether the error without importance is the sum of absolute differences.
        squares: mean squares of the block in what importance is multiplied with.
        room: working memory.
        scratch: for the search ``best``, or None.

    Returns:
        the float16 bits of the block's scale and of its minimum's, and the mask of odd lanes.

    """
    zero, top = f32(0), f32(nmax)
    n_sub = WIDTH // n
    sigma2 = zero
    if importance is not None:
        sigma2 = f32(squares) * sum_of_squares(x, 0, WIDTH) / f32(WIDTH)
        first, delta, steps, mad = _FIRST_WEIGHTED, _STEP_WEIGHTED, 36, False
    odd = _search_subblocks(x, importance, n, nmax, first, delta, steps, mad, sigma2, room)
    if importance is not None:
        d, strange = search_positive_scale(
            room.scales, 0, room.sums, n_sub, scale_max, room.scale_levels
        )
        odd = odd | strange
        m, strange = search_positive_scale(
            room.mins, 0, room.sums, n_sub, scale_max, room.min_levels
        )
        odd = odd | strange
    else:
        d = _share_of_greatest(room.scales, n_sub, scale_max, room.scale_levels)
        m = _share_of_greatest(room.mins, n_sub, scale_max, room.min_levels)
    d_bits, m_bits = half_bits(d), half_bits(m)
    odd = odd | (d_bits >= i32(INFINITE)) | (m_bits >= i32(INFINITE))
    d, m = half_value(d_bits), half_value(m_bits)
    far = zero
    for j in range(n_sub):
        scale = d * load(room.scale_levels, j * LANES)
        minimum = m * load(room.min_levels, j * LANES)
        kept = scale == zero  # the search's levels stay where the scale was rounded to nothing
        any_kept = any_lane(kept)
        inverse, low = load(room.inverses, j * LANES), load(room.lows, j * LANES)
        for i in range(n * j, n * j + n):
            value = load(x, i * LANES)
            wanted = (value + minimum) / scale
            far = most(select(kept, zero, absolute(wanted)), far)
            level = level_between(wanted, zero, top)
            if any_kept:
                searched = level_between(inverse * (value - low), zero, top)
                level = select(kept, searched, level)
            store(room.levels, i * LANES, level)
    odd = odd | (far > f32(FARTHEST_ROUNDED))
    if scratch is not None:
        for j in range(n_sub):
            weights = scratch[0, n * j * LANES :]
            _weigh_subblock(x, n * j, n, importance, mad, sigma2, room, weights)
        d_bits, m_bits = improve_min_scale(
            x, n, nmax, scale_max, mad, d_bits, m_bits, room, scratch
        )
    return d_bits, m_bits, odd


@inlined
def _min_level(room, j):
    return to_int(load(room.min_levels, j * LANES))


@inlined
def _pack_four_bits(room, first_half):
    """Lower four bits: byte ``l`` of each 64 weights holds those at l and l+32."""
    for part in range(4):
        for pair in range(16):
            half = i32(0)
            for byte in range(2):
                for k in range(2):
                    level = level_at(room, 64 * part + 32 * k + 2 * pair + byte)
                    half = half | ((level & i32(15)) << i32(4 * k + 8 * byte))
            store_half(room.halves, first_half + 16 * part + pair, half)


@inlined
def _pack_six_bit_scales(room, first_half):
    """Eight scales and eight minima of six bits in 12 bytes (``get_scale_min_k4``)."""
    for pair in range(2):
        scales, mins, rest = i32(0), i32(0), i32(0)
        for byte in range(2):
            j, shift = 2 * pair + byte, i32(8 * byte)
            scale, minimum = scale_level(room, j), _min_level(room, j)
            scale_4, min_4 = scale_level(room, j + 4), _min_level(room, j + 4)
            scales = scales | ((scale | ((scale_4 >> i32(4)) << i32(6))) << shift)
            mins = mins | ((minimum | ((min_4 >> i32(4)) << i32(6))) << shift)
            rest = rest | (((scale_4 & i32(15)) | ((min_4 & i32(15)) << i32(4))) << shift)
        store_half(room.halves, first_half + pair, scales)
        store_half(room.halves, first_half + 2 + pair, mins)
        store_half(room.halves, first_half + 4 + pair, rest)


@compiled
def encode_q2_k(tiles, importance, scratch, out, odd_blocks):
    """Q2_K: sixteen scales and minima of four bits, two bits a weight."""
    room = make_room()
    for group in range(tiles.shape[0]):
        x = next_tile(tiles, importance, group, room)
        d, m, odd = _encode_min_scale(
            x, importance, 16, 3, 15, _FIRST_2, _STEP, 15, True, 1, room, scratch
        )
        for pair in range(8):
            low = scale_level(room, 2 * pair) | (_min_level(room, 2 * pair) << i32(4))
            high = scale_level(room, 2 * pair + 1) | (_min_level(room, 2 * pair + 1) << i32(4))
            store_half(room.halves, pair, pair_of(low, high))
        pack_two_bits(room, 8)
        store_half(room.halves, 40, d)
        store_half(room.halves, 41, m)
        write_blocks(room.halves, 42, group, odd, out, odd_blocks, room.flags)


@compiled
def encode_q4_k(tiles, importance, scratch, out, odd_blocks):
    """Q4_K: eight scales and minima of six bits, four bits a weight."""
    room = make_room()
    for group in range(tiles.shape[0]):
        x = next_tile(tiles, importance, group, room)
        d, m, odd = _encode_min_scale(
            x, importance, 32, 15, 63, _FIRST_4, _STEP, 20, False, 2, room, scratch
        )
        store_half(room.halves, 0, d)
        store_half(room.halves, 1, m)
        _pack_six_bit_scales(room, 2)
        _pack_four_bits(room, 8)
        write_blocks(room.halves, 72, group, odd, out, odd_blocks, room.flags)


@compiled
def encode_q5_k(tiles, importance, scratch, out, odd_blocks):
    """Q5_K: eight scales and minima of six bits, five bits a weight."""
    room = make_room()
    for group in range(tiles.shape[0]):
        x = next_tile(tiles, importance, group, room)
        d, m, odd = _encode_min_scale(
            x, importance, 32, 31, 63, _FIRST_5, _STEP, 15, False, 2, room, scratch
        )
        store_half(room.halves, 0, d)
        store_half(room.halves, 1, m)
        _pack_six_bit_scales(room, 2)
        pack_high_bit(room, 4, 8)
        _pack_four_bits(room, 24)
        write_blocks(room.halves, 88, group, odd, out, odd_blocks, room.flags)
