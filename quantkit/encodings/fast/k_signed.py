"""The K-quants whose sub-blocks have a signed scale: Q3_K and Q6_K.

After ``quantize_row_q*_K_ref`` (no importance) and ``quantize_row_q*_K_impl`` (with importance) of
``ggml/src/ggml-quants.c``; the block layouts are those of ``ggml/src/ggml-common.h``.
"""

from quantkit.encodings.fast.best import improve_scale
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
    LARGEST,
    SMALLEST,
    least,
    level_between,
    most,
    rounded,
    search_scale,
)
from quantkit.encodings.fast.search_q3 import make_q3_room, search_q3_scales
from quantkit.encodings.fast.simd import (
    LANES,
    absolute,
    any_lane,
    f32,
    i32,
    load,
    select,
    store,
)
from quantkit.encodings.fast.tiles import store_half, write_blocks
from quantkit.encodings.fast.weighing import sum_of_squares, weigh, weigh_by_square

_CHANCE = 2.0**-18  # of the greatest error: what float16 scales leave even if levels fit exactly


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
    room, q3_room = make_room(), make_q3_room(16, 16)
    for group in range(tiles.shape[0]):
        x = next_tile(tiles, importance, group, room)
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
        pack_high_bit(room, 2, 0)
        pack_two_bits(room, 16)
        # Sixteen scales of six bits: low nibbles in 8 bytes, high pairs in 4.
        for pair in range(4):
            half = i32(0)
            for byte in range(2):
                low = scale_level(room, 2 * pair + byte) + i32(32)
                high = scale_level(room, 2 * pair + byte + 8) + i32(32)
                both = (low & i32(15)) | ((high & i32(15)) << i32(4))
                half = half | (both << i32(8 * byte))
            store_half(room.halves, 48 + pair, half)
        for pair in range(2):
            half = i32(0)
            for byte in range(2):
                for k in range(4):
                    scale = scale_level(room, 4 * k + 2 * pair + byte) + i32(32)
                    half = half | ((scale >> i32(4)) << i32(2 * k + 8 * byte))
            store_half(room.halves, 52 + pair, half)
        store_half(room.halves, 54, d_bits)
        write_blocks(room.halves, 55, group, odd, out, odd_blocks, room.flags)


@compiled
def encode_q6_k(tiles, importance, scratch, out, odd_blocks):
    """Q6_K: sixteen signed scales of eight bits, six bits a weight."""
    room = make_room()
    for group in range(tiles.shape[0]):
        x = next_tile(tiles, importance, group, room)
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
                    nibbles = (level_at(room, first) & i32(15)) | (
                        (level_at(room, first + 64) & i32(15)) << i32(4)
                    )
                    half = half | (nibbles << i32(8 * byte))
                store_half(room.halves, 32 * part + pair, half)
            for pair in range(16):
                half = i32(0)
                for byte in range(2):
                    for k in range(4):
                        level = level_at(room, 128 * part + 32 * k + 2 * pair + byte)
                        half = half | ((level >> i32(4)) << i32(2 * k + 8 * byte))
                store_half(room.halves, 64 + 16 * part + pair, half)
        for pair in range(8):
            low = scale_level(room, 2 * pair) & i32(255)
            high = scale_level(room, 2 * pair + 1) & i32(255)
            store_half(room.halves, 96 + pair, pair_of(low, high))
        store_half(room.halves, 104, d_bits)
        write_blocks(room.halves, 105, group, odd, out, odd_blocks, room.flags)
