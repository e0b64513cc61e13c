"""``--search best``: from ggml's solution of a block to one with less of the same weighted error.

ggml searches the scale and minimum of each sub-block as real numbers, and then rounds them to
multiples of the block's own scales, which it takes from the greatest. What that rounding costs is
won back here, by alternating

- for each sub-block, the multiples next to the present ones, all with the nearest levels of every
  weight, and
- for the block, the scales that fit these levels and multiples best (least squares, in closed
  form), rounded to float16.

The error is that which ggml minimizes for the type, now of the weights as they are stored. A block
is changed only where its error becomes less.

Q3_K without importance is the exception. ggml's search for it is quick but weak: a few candidates
are a better start, and its solution is not known here. Its blocks are better on the average only.
"""

import numpy as np

from quantkit.encodings.fast.halves import INFINITE, half_bits, half_value
from quantkit.encodings.fast.jit import inlined
from quantkit.encodings.fast.search import least, level_between, most
from quantkit.encodings.fast.simd import (
    LANES,
    absolute,
    f32,
    i32,
    load,
    select,
    store,
)

WIDTH = 256


def make_scratch():
    """Working memory for one call: the weights' importance and a solution's two multiples."""
    return np.empty((3, WIDTH * LANES), np.float32)


@inlined
def _cost(off, mad):
    return absolute(off) if mad else off * off


@inlined
def _inverse(scale):
    return select(scale == f32(0), f32(0), f32(1) / scale)


@inlined
def _error_at(x, start, weights, n, scale, minimum, bottom, top, mad):
    """The weighted error of a sub-block with the nearest levels."""
    inverse = _inverse(scale)
    error = f32(0)
    for i in range(start, start + n):
        wanted = load(x, i * LANES) + minimum
        off = scale * level_between(inverse * wanted, bottom, top) - wanted
        error = error + load(weights, i * LANES) * _cost(off, mad)
    return error


@inlined
def _error_of(x, start, weights, n, scale, minimum, levels, mad):
    """The weighted error of a sub-block with the given levels."""
    error = f32(0)
    for i in range(start, start + n):
        off = scale * load(levels, i * LANES) - minimum - load(x, i * LANES)
        error = error + load(weights, i * LANES) * _cost(off, mad)
    return error


@inlined
def _try_neighbours(x, weights, n, nmax, scale_max, mad, d, m, scales, mins):
    """Move each sub-block's multiples by at most one, to the best; the error of the block."""
    zero, top, most_scale = f32(0), f32(nmax), f32(scale_max)
    total = zero
    for j in range(WIDTH // n):
        start = n * j
        first_s, first_m = load(scales, j * LANES), load(mins, j * LANES)
        best_s, best_m = first_s, first_m
        best = _error_at(x, start, weights, n, d * first_s, m * first_m, zero, top, mad)
        for step in range(9):
            up, aside = step // 3 - 1, step % 3 - 1
            if up == 0 and aside == 0:
                continue
            s = most(least(first_s + f32(np.float32(up)), most_scale), zero)
            t = most(least(first_m + f32(np.float32(aside)), most_scale), zero)
            error = _error_at(x, start, weights, n, d * s, m * t, zero, top, mad)
            better = error < best
            best = select(better, error, best)
            best_s = select(better, s, best_s)
            best_m = select(better, t, best_m)
        store(scales, j * LANES, best_s)
        store(mins, j * LANES, best_m)
        total = total + best
    return total


@inlined
def _fit_scales(x, weights, n, nmax, mad, d, m, scales, mins):
    """The two scales of a block that fit its nearest levels best; the old ones where none do."""
    zero, top = f32(0), f32(nmax)
    aa, ab, bb, ax, bx = zero, zero, zero, zero, zero
    for j in range(WIDTH // n):
        s, t = load(scales, j * LANES), load(mins, j * LANES)
        scale, minimum = d * s, m * t
        inverse = _inverse(scale)
        sum_w, sum_l, sum_l2, sum_x, sum_lx = zero, zero, zero, zero, zero
        for i in range(n * j, n * j + n):
            value = load(x, i * LANES)
            wanted = value + minimum
            level = level_between(inverse * wanted, zero, top)
            w = load(weights, i * LANES)
            if mad:
                # Squares over the present distance add up to distances.
                off = absolute(scale * level - wanted)
                w = w / (off + f32(0.1) * scale)
            wl = w * level
            sum_w = sum_w + w
            sum_l = sum_l + wl
            sum_l2 = sum_l2 + wl * level
            sum_x = sum_x + w * value
            sum_lx = sum_lx + wl * value
        aa = aa + s * s * sum_l2
        ab = ab + s * t * sum_l
        bb = bb + t * t * sum_w
        ax = ax + s * sum_lx
        bx = bx + t * sum_x
    determinant = aa * bb - ab * ab
    both = determinant > f32(1e-6) * aa * bb
    new_d = (ax * bb - ab * bx) / determinant
    new_m = (ab * ax - aa * bx) / determinant
    new_d = select(both, new_d, select(aa > zero, (ax + m * ab) / aa, d))
    new_m = select(both, new_m, m)
    fine = (new_d > zero) & (new_m >= zero)
    return select(fine, new_d, d), select(fine, new_m, m)


@inlined
def improve_min_scale(x, n, nmax, scale_max, mad, d_bits, m_bits, room, scratch):
    """Less error for blocks with scales and minima: Q2_K, Q4_K and Q5_K.

    Args:
        x: the weights.
        n: elements per sub-block.
        nmax: the largest level.
        scale_max: the largest multiple.
        mad: whether the error is the sum of absolute, not of squared differences.
        d_bits: float16 bits of the block's scale.
        m_bits: of its minimum's.
        room: ggml's solution; the better one afterwards.
        scratch: from ``make_scratch``, with the importance of the weights in the first row.

    Returns:
        the float16 bits of the better scales.

    """
    weights, scales, mins = scratch[0], scratch[1], scratch[2]
    n_sub = WIDTH // n
    zero, top = f32(0), f32(nmax)
    d, m = half_value(d_bits), half_value(m_bits)
    best = zero
    for j in range(n_sub):
        s, t = load(room.scale_levels, j * LANES), load(room.min_levels, j * LANES)
        store(scales, j * LANES, s)
        store(mins, j * LANES, t)
        best = best + _error_of(x, n * j, weights, n, d * s, m * t, room.levels, mad)
    improved = zero < zero
    new_d_bits, new_m_bits = d_bits, m_bits
    for turn in range(2):
        if turn > 0:
            d, m = _fit_scales(x, weights, n, nmax, mad, d, m, scales, mins)
            new_d_bits, new_m_bits = half_bits(d), half_bits(m)
            d, m = half_value(new_d_bits), half_value(new_m_bits)
        error = _try_neighbours(x, weights, n, nmax, scale_max, mad, d, m, scales, mins)
        fits = (new_d_bits < i32(INFINITE)) & (new_m_bits < i32(INFINITE))
        better = (error < best) & fits
        best = select(better, error, best)
        improved = improved | better
        d_bits = select(better, new_d_bits, d_bits)
        m_bits = select(better, new_m_bits, m_bits)
        for j in range(n_sub):
            at = j * LANES
            store(
                room.scale_levels, at, select(better, load(scales, at), load(room.scale_levels, at))
            )
            store(room.min_levels, at, select(better, load(mins, at), load(room.min_levels, at)))
    d, m = half_value(d_bits), half_value(m_bits)
    for j in range(n_sub):
        scale = d * load(room.scale_levels, j * LANES)
        minimum = m * load(room.min_levels, j * LANES)
        inverse = _inverse(scale)
        for i in range(n * j, n * j + n):
            level = level_between(inverse * (load(x, i * LANES) + minimum), zero, top)
            store(room.levels, i * LANES, select(improved, level, load(room.levels, i * LANES)))
    return d_bits, m_bits


@inlined
def _try_multiples(x, weights, nmax, scale_bottom, scale_top, reach, mirrored, d, scales):
    """Like ``_try_neighbours``, without minima; ``mirrored``: also around the negative multiple."""
    zero, bottom, top = f32(0), f32(-nmax), f32(nmax - 1)
    lowest, highest = f32(scale_bottom), f32(scale_top)
    total = zero
    for j in range(WIDTH // 16):
        first = load(scales, j * LANES)
        best_s = first
        best = _error_at(x, 16 * j, weights, 16, d * first, zero, bottom, top, False)
        for step in range((2 if mirrored else 1) * (2 * reach + 1)):
            if step == reach:
                continue
            beside = step % (2 * reach + 1) - reach
            centre = first if step < 2 * reach + 1 else zero - first
            s = most(least(centre + f32(np.float32(beside)), highest), lowest)
            error = _error_at(x, 16 * j, weights, 16, d * s, zero, bottom, top, False)
            better = error < best
            best = select(better, error, best)
            best_s = select(better, s, best_s)
        store(scales, j * LANES, best_s)
        total = total + best
    return total


@inlined
def _fit_scale(x, weights, nmax, d, scales):
    """The scale of a block that fits its nearest levels best; the old one where none does."""
    zero, bottom, top = f32(0), f32(-nmax), f32(nmax - 1)
    above, below = zero, zero
    for j in range(WIDTH // 16):
        s = load(scales, j * LANES)
        inverse = _inverse(d * s)
        sum_l2, sum_lx = zero, zero
        for i in range(16 * j, 16 * j + 16):
            value = load(x, i * LANES)
            level = level_between(inverse * value, bottom, top)
            wl = load(weights, i * LANES) * level
            sum_l2 = sum_l2 + wl * level
            sum_lx = sum_lx + wl * value
        above = above + s * sum_lx
        below = below + s * s * sum_l2
    return select(below > zero, above / below, d)


@inlined
def improve_scale(x, nmax, scale_bottom, scale_top, reach, mirrored, rounds, d_bits, room, scratch):
    """Less error for blocks with signed scales of 16 weights: Q3_K and Q6_K.

    Args:
        x: the weights.
        nmax: levels go from ``-nmax`` to ``nmax - 1``; the room's count from 0.
        scale_bottom: the least multiple.
        scale_top: the greatest.
        reach: how far to look around the present multiples.
        mirrored: whether to look around their negatives, too.
        rounds: how often to fit the block's scale.
        d_bits: float16 bits of the block's scale.
        room: ggml's solution; the better one afterwards.
        scratch: from ``make_scratch``, with the importance of the weights in the first row.

    Returns:
        the float16 bits of the better scale, and the error that is left.

    """
    weights, scales = scratch[0], scratch[1]
    zero, bottom, top, middle = f32(0), f32(-nmax), f32(nmax - 1), f32(nmax)
    d = half_value(d_bits)
    best = zero
    for j in range(WIDTH // 16):
        s = load(room.scale_levels, j * LANES)
        store(scales, j * LANES, s)
        scale = d * s
        best = best + _error_of(x, 16 * j, weights, 16, scale, scale * middle, room.levels, False)
    improved = zero < zero
    new_bits = d_bits
    for turn in range(rounds + 1):
        if turn > 0:
            new_bits = half_bits(_fit_scale(x, weights, nmax, d, scales))
            d = half_value(new_bits)
        error = _try_multiples(
            x,
            weights,
            nmax,
            scale_bottom,
            scale_top,
            reach if turn == 0 else 1,
            mirrored and turn == 0,
            d,
            scales,
        )
        better = (error < best) & ((new_bits & i32(INFINITE)) != i32(INFINITE))
        best = select(better, error, best)
        improved = improved | better
        d_bits = select(better, new_bits, d_bits)
        for j in range(WIDTH // 16):
            at = j * LANES
            store(
                room.scale_levels, at, select(better, load(scales, at), load(room.scale_levels, at))
            )
    d = half_value(d_bits)
    for j in range(WIDTH // 16):
        inverse = _inverse(d * load(room.scale_levels, j * LANES))
        for i in range(16 * j, 16 * j + 16):
            level = level_between(inverse * load(x, i * LANES), bottom, top) + middle
            store(room.levels, i * LANES, select(improved, level, load(room.levels, i * LANES)))
    return d_bits, best
