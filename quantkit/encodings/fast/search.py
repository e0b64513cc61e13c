"""ggml's searches for the scale of a sub-block, one sub-block per lane.

Each follows the function of ``ggml/src/ggml-quants.c`` that its docstring names, operation by
operation: the same sums in the same order give the same bits. ggml's branches become ``select``.
ggml keeps the levels of the best candidate; here the candidate itself is kept, and its levels are
computed anew where they are needed.

Levels are rounded by adding and subtracting 1.5 * 2**23, which is ggml's ``nearest_int`` for
magnitudes below 2**22. A lane that may leave that range is reported as *odd*, and left to ggml.

Arrays are tiles: element ``i`` of every lane lies at ``[i * LANES : (i + 1) * LANES]``.
"""

import numpy as np

from quantkit.encodings.fast.jit import inlined
from quantkit.encodings.fast.simd import (
    LANES,
    absolute,
    any_lane,
    f32,
    load,
    select,
    store,
)

_MAGIC = 12582912.0  # 1.5 * 2**23
FARTHEST_ROUNDED = 4194303.0
SMALLEST = 1e-15  # GROUP_MAX_EPS: below, ggml takes a group for zero
LARGEST = 1e9  # of weights; beyond, squares of squares leave float32
_NARROWEST = 1e-30  # a range of weights whose inverse is finite
_NARROWER = 2.0**-12  # a range shrunk to this part of itself puts levels out of the rounded range
_STEP = np.float32(0.1)
ROUNDS = 5


@inlined
def rounded(x):
    """To the nearest integer, ties to even."""
    magic = f32(_MAGIC)
    return (x + magic) - magic


@inlined
def least(a, b):
    """``b`` unless ``a`` is less."""
    return select(a < b, a, b)


@inlined
def most(a, b):
    """``b`` unless ``a`` is greater."""
    return select(a > b, a, b)


@inlined
def level_between(x, bottom, top):
    """``x`` rounded and clamped."""
    return most(least(rounded(x), top), bottom)


@inlined
def farthest(x, start, n):
    """The element with the greatest magnitude (the first of those) and its magnitude."""
    far = f32(0)
    magnitude = far
    for i in range(n):
        value = load(x, (start + i) * LANES)
        size = absolute(value)
        beyond = size > magnitude
        magnitude = select(beyond, size, magnitude)
        far = select(beyond, value, far)
    return far, magnitude


@inlined
def search_min_scale(x, start, weight, n, nmax, first, delta, steps, mad, levels):
    """Scale and minimum of each sub-block: ``make_qkx2_quants`` and ``make_qkx3_quants``.

    Args:
        x: the weights.
        start: where in the tile the sub-block begins.
        weight: the importance of its elements, a tile of ``n``.
        n: elements per sub-block.
        nmax: the largest level.
        first: candidates are ``(first + delta * step + nmax) / range``.
        delta: see there.
        steps: the last step.
        mad: whether the error is the sum of absolute, not of squared differences.
        levels: room for a tile of ``n``.

    Returns:
        scale, minimum (not above 0), the sum of importance, the inverse scale and the minimum
        that the levels are rounded with, and the mask of odd lanes.

    """
    zero, one, top = f32(0), f32(1), f32(nmax)
    low = load(x, start * LANES)
    high = low
    sum_w = load(weight, 0)
    sum_x = sum_w * low
    for i in range(1, n):
        value = load(x, (start + i) * LANES)
        w = load(weight, i * LANES)
        low = least(value, low)
        high = most(value, high)
        sum_w = sum_w + w
        sum_x = sum_x + w * value
    low = select(low > zero, zero, low)
    width = high - low
    flat = width <= zero
    odd = (width > f32(LARGEST)) | ((width < f32(_NARROWEST)) & (width > zero))
    inverse = top / width
    scale = one / inverse
    best = zero
    for i in range(n):
        value = load(x, (start + i) * LANES)
        level = level_between(inverse * (value - low), zero, top)
        off = scale * level + low - value
        best = best + load(weight, i * LANES) * (absolute(off) if mad else off * off)
    minimum, best_inverse, best_low = low, inverse, low
    narrow = width * f32(_NARROWER)
    for step in range(steps + 1):
        factor = np.float32(first + delta * np.float32(step)) + np.float32(nmax)
        width = high - minimum
        odd = odd | ((width < narrow) & (narrow > zero))
        inverse = f32(factor) / width
        sum_l, sum_l2, sum_xl = zero, zero, zero
        for i in range(n):
            value = load(x, (start + i) * LANES)
            level = level_between(inverse * (value - minimum), zero, top)
            store(levels, i * LANES, level)
            wl = load(weight, i * LANES) * level
            sum_l = sum_l + wl
            sum_l2 = sum_l2 + wl * level
            sum_xl = sum_xl + wl * value
        determinant = sum_w * sum_l2 - sum_l * sum_l
        this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = this_min > zero
        this_scale = select(above, sum_xl / sum_l2, this_scale)
        this_min = select(above, zero, this_min)
        error = zero
        for i in range(n):
            off = this_scale * load(levels, i * LANES) + this_min - load(x, (start + i) * LANES)
            error = error + load(weight, i * LANES) * (absolute(off) if mad else off * off)
        better = (determinant > zero) & (error < best)
        best_inverse = select(better, inverse, best_inverse)
        best_low = select(better, minimum, best_low)
        best = select(better, error, best)
        scale = select(better, this_scale, scale)
        minimum = select(better, this_min, minimum)
    scale = select(flat, zero, scale)
    minimum = select(flat, low, minimum)
    best_inverse = select(flat, zero, best_inverse)
    return scale, minimum, sum_w, best_inverse, best_low, odd


@inlined
def search_scale(x, start, weight, first_weight, n, nmax, stride, products):
    """Scale of each sub-block with levels on both sides of 0: ``make_qx_quants``, rmse type 1.

    Args:
        x: the weights.
        start: where in the tile the sub-block begins.
        weight: the importance of the weights.
        first_weight: where in that tile the sub-block begins.
        n: elements per sub-block.
        nmax: levels go from ``-nmax`` to ``nmax - 1``.
        stride: 1 for all of ggml's candidates, 2 for every second one.
        products: room for a tile of ``n``.

    Returns:
        scale, the inverse scale that the levels are rounded with, and the mask of the lanes that
        ggml takes for zero: their scale is 0, and their levels are the lowest.

    """
    zero, bottom, top = f32(0), f32(-nmax), f32(nmax - 1)
    far, magnitude = farthest(x, start, n)
    blank = magnitude < f32(SMALLEST)
    best_inverse = bottom / far
    sum_lx, sum_l2 = zero, zero
    for i in range(n):
        value = load(x, (start + i) * LANES)
        w = load(weight, (first_weight + i) * LANES)
        level = level_between(best_inverse * value, bottom, top)
        product = w * value
        store(products, i * LANES, product)
        sum_lx = sum_lx + product * level
        sum_l2 = sum_l2 + (w * level) * level
    scale = select(sum_l2 == zero, zero, sum_lx / sum_l2)
    best = scale * sum_lx
    for candidate in range(-9, 10, stride):
        if candidate == 0:
            continue
        factor = np.float32(nmax) + _STEP * np.float32(candidate)
        inverse = f32(-factor) / far
        sum_lx, sum_l2 = zero, zero
        for i in range(n):
            level = level_between(inverse * load(x, (start + i) * LANES), bottom, top)
            sum_lx = sum_lx + load(products, i * LANES) * level
            sum_l2 = sum_l2 + (load(weight, (first_weight + i) * LANES) * level) * level
        better = (sum_l2 > zero) & (sum_lx * sum_lx > best * sum_l2)
        scale = select(better, sum_lx / sum_l2, scale)
        best = select(better, scale * sum_lx, best)
        best_inverse = select(better, inverse, best_inverse)
    return select(blank, zero, scale), best_inverse, blank


@inlined
def refine_once(x, start, weight, n, bottom, top, least_sl2, levels, sum_lx, sum_l2, odd):
    """One round of ``refine_levels``; also the mask of lanes where a level changed."""
    zero, far = f32(0), f32(FARTHEST_ROUNDED)
    changed = zero < zero
    for i in range(n):
        value = load(x, (start + i) * LANES)
        w = load(weight, i * LANES)
        level = load(levels, (start + i) * LANES)
        product = w * value
        slx = sum_lx - product * level
        sl2 = sum_l2 - (w * level) * level
        wanted = value * sl2 / slx
        free = (slx > zero) & (sl2 > least_sl2)
        odd = odd | (free & (absolute(wanted) > far))
        new = level_between(wanted, bottom, top)
        slx = slx + product * new
        sl2 = sl2 + (w * new) * new
        better = free & (new != level) & (sl2 > zero) & (slx * slx * sum_l2 > sum_lx * sum_lx * sl2)
        store(levels, (start + i) * LANES, select(better, new, level))
        sum_lx = select(better, slx, sum_lx)
        sum_l2 = select(better, sl2, sum_l2)
        changed = changed | better
    return sum_lx, sum_l2, odd, changed


@inlined
def refine_levels(x, start, weight, n, bottom, top, least_sl2, rounds, levels, sum_lx, sum_l2, odd):
    """Change one level after the other as long as the fit gets better: up to ``rounds`` rounds.

    The last part of ``make_q3_quants`` and of ``make_qp_quants``, which asks in addition that
    the sum of squared levels without the element be above ``least_sl2``.

    Returns:
        the sums of weight * level * x and of weight * level**2, and the mask of odd lanes.

    """
    for _ in range(rounds):
        sum_lx, sum_l2, odd, changed = refine_once(
            x, start, weight, n, bottom, top, least_sl2, levels, sum_lx, sum_l2, odd
        )
        if not any_lane(changed):
            break
    return sum_lx, sum_l2, odd


@inlined
def search_positive_scale(x, start, weight, n, nmax, levels):
    """One scale for ``n`` scales that are not negative: ``make_qp_quants``.

    ``levels`` gets the levels.

    Returns:
        scale, and the mask of odd lanes.

    """
    zero, one, top = f32(0), f32(1), f32(nmax)
    greatest = zero
    for i in range(n):
        greatest = most(greatest, load(x, (start + i) * LANES))
    blank = greatest < f32(SMALLEST)
    inverse = top / greatest
    scale = one / inverse
    best = zero
    for i in range(n):
        value = load(x, (start + i) * LANES)
        off = value - scale * rounded(inverse * value)
        best = best + load(weight, i * LANES) * off * off
    for candidate in range(-4, 5):
        if candidate == 0:
            continue
        factor = _STEP * np.float32(candidate) + np.float32(nmax)
        this_inverse = f32(factor) / greatest
        this_scale = one / this_inverse
        error = zero
        for i in range(n):
            value = load(x, (start + i) * LANES)
            off = value - this_scale * least(rounded(this_inverse * value), top)
            error = error + load(weight, i * LANES) * off * off
        better = error < best
        best = select(better, error, best)
        inverse = select(better, this_inverse, inverse)
    sum_lx, sum_l2 = zero, zero
    for i in range(n):
        value = load(x, (start + i) * LANES)
        level = select(blank, zero, least(rounded(inverse * value), top))
        store(levels, (start + i) * LANES, level)
        w = load(weight, i * LANES)
        sum_lx = sum_lx + w * value * level
        sum_l2 = sum_l2 + w * level * level
    sum_lx, sum_l2, odd = refine_levels(
        x, start, weight, n, zero, top, zero, ROUNDS, levels, sum_lx, sum_l2, zero < zero
    )
    scale = select(sum_l2 > zero, sum_lx / sum_l2, zero)
    return select(blank, zero, scale), odd & (greatest >= f32(SMALLEST))
