"""The K-quants: blocks of 256 weights in sub-blocks with quantized scales.

After ``quantize_row_q*_K_ref`` (no importance) and ``quantize_row_q*_K_impl`` (with importance) of
``ggml/src/ggml-quants.c``; the block layouts are those of ``ggml/src/ggml-common.h``.
"""

from collections import namedtuple

import numpy as np

from quantkit.encodings.fast.best import improve_min_scale, improve_scale
from quantkit.encodings.fast.halves import INFINITE, half_bits, half_value
from quantkit.encodings.fast.jit import compiled, inlined
from quantkit.encodings.fast.search import (
    FARTHEST_ROUNDED,
    LARGEST,
    SMALLEST,
    least,
    level_between,
    make_q3_room,
    most,
    rounded,
    search_min_scale,
    search_positive_scale,
    search_q3_scales,
    search_scale,
    weigh_by_square,
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
from quantkit.encodings.fast.tiles import importance_tile, store_half, write_blocks

WIDTH = 256
_MOST_SUBBLOCKS = 16
_CHANCE = 2.0**-18  # of the greatest error: what float16 scales leave even if levels fit exactly
# First candidate and step of the searches, relative to the largest level.
_FIRST_2, _FIRST_4, _FIRST_5, _STEP = map(np.float32, (-0.5, -1, -0.5, 0.1))
_FIRST_WEIGHTED, _STEP_WEIGHTED = map(np.float32, (-0.9, 0.05))
# Working memory of one call: tiles of what its name says.
Room = namedtuple(
    "Room",
    "levels weight importance scales mins inverses lows sums scale_levels min_levels halves flags",
)


@inlined
def _make_room():
    per_block = np.empty((7, _MOST_SUBBLOCKS * LANES), np.float32)
    return Room(
        np.empty(WIDTH * LANES, np.float32),
        np.empty(WIDTH * LANES, np.float32),
        np.empty(WIDTH * LANES, np.float32),
        per_block[0],
        per_block[1],
        per_block[2],
        per_block[3],
        per_block[4],
        per_block[5],
        per_block[6],
        np.empty(WIDTH // 2 * LANES, np.int32),
        np.empty(LANES, np.int32),
    )


@inlined
def _next_tile(tiles, importance, group, room):
    if importance is not None:
        importance_tile(importance, group, WIDTH, room.importance)
    return tiles[group]


@inlined
def sum_of_squares(x, start, n):
    """Of ``n`` elements of a tile, added up in their order."""
    total = f32(0)
    for i in range(n):
        value = load(x, (start + i) * LANES)
        total = total + value * value
    return total


@inlined
def weigh(x, start, n, sigma2, importance, weight):
    """What the searches weigh elements with: importance * sqrt(sigma2 + x**2)."""
    for i in range(n):
        value = load(x, (start + i) * LANES)
        spread = sqrt(sigma2 + value * value)
        store(weight, i * LANES, load(importance, (start + i) * LANES) * spread)


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
def _level(room, index):
    return to_int(load(room.levels, index * LANES))


@inlined
def _scale_level(room, j):
    return to_int(load(room.scale_levels, j * LANES))


@inlined
def _min_level(room, j):
    return to_int(load(room.min_levels, j * LANES))


@inlined
def _pair(low, high):
    """Two bytes as a 16-bit half."""
    return low | (high << i32(8))


@inlined
def _pack_two_bits(room, first_half):
    """Levels of two bits: byte ``l`` of each 128 weights holds those at l, l+32, l+64 and l+96."""
    for part in range(2):
        for pair in range(16):
            half = i32(0)
            for byte in range(2):
                for k in range(4):
                    level = _level(room, 128 * part + 32 * k + 2 * pair + byte)
                    half = half | ((level & i32(3)) << i32(2 * k + 8 * byte))
            store_half(room.halves, first_half + 16 * part + pair, half)


@inlined
def _pack_four_bits(room, first_half):
    """Lower four bits: byte ``l`` of each 64 weights holds those at l and l+32."""
    for part in range(4):
        for pair in range(16):
            half = i32(0)
            for byte in range(2):
                for k in range(2):
                    level = _level(room, 64 * part + 32 * k + 2 * pair + byte)
                    half = half | ((level & i32(15)) << i32(4 * k + 8 * byte))
            store_half(room.halves, first_half + 16 * part + pair, half)


@inlined
def _pack_high_bit(room, bit, first_half):
    """One bit of each level: bit ``k`` of byte ``l`` is that of the weight at 32 * k + l."""
    for pair in range(16):
        half = i32(0)
        for byte in range(2):
            for k in range(8):
                high = (_level(room, 32 * k + 2 * pair + byte) >> i32(bit)) & i32(1)
                half = half | (high << i32(k + 8 * byte))
        store_half(room.halves, first_half + pair, half)


@inlined
def _pack_six_bit_scales(room, first_half):
    """Eight scales and eight minima of six bits in 12 bytes (``get_scale_min_k4``)."""
    for pair in range(2):
        scales, mins, rest = i32(0), i32(0), i32(0)
        for byte in range(2):
            j, shift = 2 * pair + byte, i32(8 * byte)
            scale, minimum = _scale_level(room, j), _min_level(room, j)
            scale_4, min_4 = _scale_level(room, j + 4), _min_level(room, j + 4)
            scales = scales | ((scale | ((scale_4 >> i32(4)) << i32(6))) << shift)
            mins = mins | ((minimum | ((min_4 >> i32(4)) << i32(6))) << shift)
            rest = rest | (((scale_4 & i32(15)) | ((min_4 & i32(15)) << i32(4))) << shift)
        store_half(room.halves, first_half + pair, scales)
        store_half(room.halves, first_half + 2 + pair, mins)
        store_half(room.halves, first_half + 4 + pair, rest)


@compiled
def encode_q2_k(tiles, importance, scratch, out, odd_blocks):
    """Q2_K: sixteen scales and minima of four bits, two bits a weight."""
    room = _make_room()
    for group in range(tiles.shape[0]):
        x = _next_tile(tiles, importance, group, room)
        d, m, odd = _encode_min_scale(
            x, importance, 16, 3, 15, _FIRST_2, _STEP, 15, True, 1, room, scratch
        )
        for pair in range(8):
            low = _scale_level(room, 2 * pair) | (_min_level(room, 2 * pair) << i32(4))
            high = _scale_level(room, 2 * pair + 1) | (_min_level(room, 2 * pair + 1) << i32(4))
            store_half(room.halves, pair, _pair(low, high))
        _pack_two_bits(room, 8)
        store_half(room.halves, 40, d)
        store_half(room.halves, 41, m)
        write_blocks(room.halves, 42, group, odd, out, odd_blocks, room.flags)


@compiled
def encode_q4_k(tiles, importance, scratch, out, odd_blocks):
    """Q4_K: eight scales and minima of six bits, four bits a weight."""
    room = _make_room()
    for group in range(tiles.shape[0]):
        x = _next_tile(tiles, importance, group, room)
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
    room = _make_room()
    for group in range(tiles.shape[0]):
        x = _next_tile(tiles, importance, group, room)
        d, m, odd = _encode_min_scale(
            x, importance, 32, 31, 63, _FIRST_5, _STEP, 15, False, 2, room, scratch
        )
        store_half(room.halves, 0, d)
        store_half(room.halves, 1, m)
        _pack_six_bit_scales(room, 2)
        _pack_high_bit(room, 4, 8)
        _pack_four_bits(room, 24)
        write_blocks(room.halves, 88, group, odd, out, odd_blocks, room.flags)


@inlined
def _requantize(x, d_bits, nmax, from_search, room):
    """Levels of a block with signed scales of 16 weights, from 0; the mask of odd lanes.

    Where the scale was rounded to nothing the search's levels stay: those in the room, still from
    ``-nmax``, or (``from_search``) those that its inverse scale gives, where ``lows`` is not 0.
    """
    zero, bottom, top, middle = f32(0), f32(-nmax), f32(nmax - 1), f32(nmax)
    d = half_value(d_bits)
    far = zero
    for j in range(WIDTH // 16):
        scale = d * load(room.scale_levels, j * LANES)
        kept = scale == zero
        any_kept = any_lane(kept)
        inverse, sound = load(room.inverses, j * LANES), load(room.lows, j * LANES)
        for i in range(16 * j, 16 * j + 16):
            value = load(x, i * LANES)
            wanted = value / scale
            far = most(select(kept, zero, absolute(wanted)), far)
            level = level_between(wanted, bottom, top) + middle
            if any_kept:
                if from_search:
                    searched = level_between(inverse * value, bottom, top) + middle
                    searched = select(sound == zero, zero, searched)
                else:
                    searched = load(room.levels, i * LANES) + middle
                level = select(kept, searched, level)
            store(room.levels, i * LANES, level)
    return far > f32(FARTHEST_ROUNDED)


@inlined
def _infinite(half):
    return (half & i32(INFINITE)) == i32(INFINITE)


@inlined
def _search_signed(x, importance, nmax, stride, sigma2, room):
    """Scale and importance of every sub-block of 16 into the room."""
    zero, one = f32(0), f32(1)
    for j in range(WIDTH // 16):
        if importance is not None:
            weigh(x, 16 * j, 16, sigma2, room.importance, room.weight)
        else:
            weigh_by_square(x, 16 * j, 16, room.weight)
        total = zero
        for i in range(16):
            total = total + load(room.weight, i * LANES)
        store(room.sums, j * LANES, total)
        scale, inverse, blank = search_scale(
            x, 16 * j, room.weight, 0, 16, nmax, stride, room.levels
        )
        store(room.scales, j * LANES, scale)
        store(room.inverses, j * LANES, inverse)
        store(room.lows, j * LANES, select(blank, zero, one))


@inlined
def _farthest_scale(room):
    far = f32(0)
    size = far
    for j in range(WIDTH // 16):
        scale = load(room.scales, j * LANES)
        beyond = absolute(scale) > size
        size = select(beyond, absolute(scale), size)
        far = select(beyond, scale, far)
    return far, size


@inlined
def _too_large(x):
    far = f32(0)
    for i in range(WIDTH):
        far = most(absolute(load(x, i * LANES)), far)
    return far > f32(LARGEST)


@inlined
def _fit_signed_scales(x, importance, stride, sigma2, room):
    """Multiples of the scales of Q3_K that fit them best: the block's scale."""
    bottom, top = f32(-32), f32(31)
    _search_signed(x, importance, 4, stride, sigma2, room)
    d, inverse, blank = search_scale(room.scales, 0, room.sums, 0, 16, 32, 1, room.weight)
    for j in range(16):
        level = level_between(inverse * load(room.scales, j * LANES), bottom, top)
        store(room.scale_levels, j * LANES, select(blank, bottom, level))
    return d, _too_large(x), True


@inlined
def _share_of_farthest(x, room, q3_room):
    """Multiples of the scales of Q3_K as parts of the farthest: the block's scale, odd lanes."""
    zero, bottom, top = f32(0), f32(-32), f32(31)
    odd = search_q3_scales(x, 16, 16, 4, q3_room, room.levels, room.scales)
    far, _ = _farthest_scale(room)
    inverse = bottom / far
    blank = far == zero
    for j in range(16):
        level = level_between(inverse * load(room.scales, j * LANES), bottom, top)
        store(room.scale_levels, j * LANES, select(blank, bottom, level))
    return select(blank, zero, f32(1) / inverse), odd, False


@inlined
def _weigh_for_best_q3(x, weight):
    """What ``best`` weighs elements of Q3_K with; the error of taking them all for zero.

    The squares that ggml weighs with neglect small elements: adding three times their mean costs
    a few percent of ggml's measure and wins as much of the plain error.
    """
    mean = f32(3 / WIDTH) * sum_of_squares(x, 0, WIDTH)
    error = f32(0)
    for i in range(WIDTH):
        value = load(x, i * LANES)
        square = value * value
        w = square + mean
        error = error + w * square
        store(weight, i * LANES, w)
    return error


@compiled
def encode_q3_k(tiles, importance, scratch, out, odd_blocks):
    """Q3_K: sixteen signed scales of six bits, three bits a weight."""
    room, q3_room = _make_room(), make_q3_room(16, 16)
    for group in range(tiles.shape[0]):
        x = _next_tile(tiles, importance, group, room)
        sigma2 = f32(0)
        if importance is not None:
            sigma2 = f32(2) * sum_of_squares(x, 0, WIDTH) / f32(WIDTH)
            d, odd, from_search = _fit_signed_scales(x, importance, 1, sigma2, room)
        elif scratch is not None:
            # A few candidates are a better start than ggml's own search, and sooner found.
            d, odd, from_search = _fit_signed_scales(x, importance, 6, sigma2, room)
        else:
            d, odd, from_search = _share_of_farthest(x, room, q3_room)
        d_bits = half_bits(d)
        odd = odd | _infinite(d_bits) | _requantize(x, d_bits, 4, from_search, room)
        if scratch is not None:
            if importance is not None:
                weigh(x, 0, WIDTH, sigma2, room.importance, scratch[0])
                d_bits, _ = improve_scale(x, 4, -32, 31, 1, True, 1, d_bits, room, scratch)
            else:
                error_of_zero = _weigh_for_best_q3(x, scratch[0])
                d_bits, error = improve_scale(x, 4, -32, 31, 1, False, 0, d_bits, room, scratch)
                # What is left is chance: how near a float16 comes to the few weights that count.
                odd = odd | (error < f32(_CHANCE) * error_of_zero)
        _pack_high_bit(room, 2, 0)
        _pack_two_bits(room, 16)
        # Sixteen scales of six bits: low nibbles in 8 bytes, high pairs in 4.
        for pair in range(4):
            half = i32(0)
            for byte in range(2):
                low = _scale_level(room, 2 * pair + byte) + i32(32)
                high = _scale_level(room, 2 * pair + byte + 8) + i32(32)
                both = (low & i32(15)) | ((high & i32(15)) << i32(4))
                half = half | (both << i32(8 * byte))
            store_half(room.halves, 48 + pair, half)
        for pair in range(2):
            half = i32(0)
            for byte in range(2):
                for k in range(4):
                    scale = _scale_level(room, 4 * k + 2 * pair + byte) + i32(32)
                    half = half | ((scale >> i32(4)) << i32(2 * k + 8 * byte))
            store_half(room.halves, 52 + pair, half)
        store_half(room.halves, 54, d_bits)
        write_blocks(room.halves, 55, group, odd, out, odd_blocks, room.flags)


@compiled
def encode_q6_k(tiles, importance, scratch, out, odd_blocks):
    """Q6_K: sixteen signed scales of eight bits, six bits a weight."""
    room = _make_room()
    for group in range(tiles.shape[0]):
        x = _next_tile(tiles, importance, group, room)
        zero = f32(0)
        odd = _too_large(x)
        for j in range(16):
            if importance is not None:
                scale, inverse, blank = search_scale(
                    x, 16 * j, room.importance, 16 * j, 16, 32, 1, room.levels
                )
            else:
                weigh_by_square(x, 16 * j, 16, room.weight)
                scale, inverse, blank = search_scale(
                    x, 16 * j, room.weight, 0, 16, 32, 1, room.levels
                )
            store(room.scales, j * LANES, scale)
            store(room.inverses, j * LANES, inverse)
            store(room.lows, j * LANES, select(blank, zero, f32(1)))
        far, size = _farthest_scale(room)
        blank = size < f32(SMALLEST)
        inverse = f32(-128) / far
        for j in range(16):
            level = least(rounded(inverse * load(room.scales, j * LANES)), f32(127))
            store(room.scale_levels, j * LANES, select(blank, zero, level))
        d_bits = select(blank, i32(0), half_bits(f32(1) / inverse))
        odd = odd | _infinite(d_bits) | _requantize(x, d_bits, 32, True, room)
        for i in range(WIDTH):
            level = load(room.levels, i * LANES)
            store(room.levels, i * LANES, select(blank, zero, level))
        if scratch is not None:
            if importance is not None:
                for i in range(WIDTH):
                    store(scratch[0], i * LANES, load(room.importance, i * LANES))
            else:
                weigh_by_square(x, 0, WIDTH, scratch[0])
            d_bits, _ = improve_scale(x, 32, -128, 127, 2, False, 1, d_bits, room, scratch)
        for part in range(2):
            for pair in range(32):
                half = i32(0)
                for byte in range(2):
                    first = 128 * part + 2 * pair + byte
                    nibbles = (_level(room, first) & i32(15)) | (
                        (_level(room, first + 64) & i32(15)) << i32(4)
                    )
                    half = half | (nibbles << i32(8 * byte))
                store_half(room.halves, 32 * part + pair, half)
            for pair in range(16):
                half = i32(0)
                for byte in range(2):
                    for k in range(4):
                        level = _level(room, 128 * part + 32 * k + 2 * pair + byte)
                        half = half | ((level >> i32(4)) << i32(2 * k + 8 * byte))
                store_half(room.halves, 64 + 16 * part + pair, half)
        for pair in range(8):
            low = _scale_level(room, 2 * pair) & i32(255)
            high = _scale_level(room, 2 * pair + 1) & i32(255)
            store_half(room.halves, 96 + pair, _pair(low, high))
        store_half(room.halves, 104, d_bits)
        write_blocks(room.halves, 105, group, odd, out, odd_blocks, room.flags)
