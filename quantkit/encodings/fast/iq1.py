"""IQ1_S and IQ1_M: groups of eight levels of three, on a grid, around one of two shifted centres.

After ``quantize_row_iq1_s_impl`` and ``quantize_row_iq1_m_impl`` of ``ggml/src/ggml-quants.c``;
the block layouts are those of ``ggml/src/ggml-common.h``.
"""

import numpy as np

from quantkit.encodings.fast.halves import INFINITE, half_bits
from quantkit.encodings.fast.jit import compiled, inlined
from quantkit.encodings.fast.nearest import make_runs, number_points
from quantkit.encodings.fast.search import LARGEST
from quantkit.encodings.fast.simd import (
    LANES,
    any_lane,
    f32,
    i32,
    load,
    negative,
    select,
    store,
    to_int,
)
from quantkit.encodings.fast.thirds import (
    DELTA,
    SORT_16,
    SORT_32,
    centre_of,
    levels_by_rank,
    place_group,
    scale_levels,
    sort,
    take,
    value_of,
)
from quantkit.encodings.fast.tiles import importance_tile, store_half, write_blocks
from quantkit.encodings.fast.weighing import sum_of_squares, weigh, weigh_by_square

_SMALLEST_S, _SMALLEST_M = 1e-12, 1e-7  # GROUP_MAX_EPS_IQ1_S, GROUP_MAX_EPS_IQ1_M
_NONE = -3.4028234663852886e38  # -FLT_MAX
_FUDGE_S, _FUDGE_M = np.float32(1.125), np.float32(1.1125)


@inlined
def _split_32(values, weights, sums):
    """The best split of 32 sorted weights.

    Returns:
        the ranks where the middle and the highest level begin (-1 where there is none), the
        scale, and the mask of lanes whose centre is above 0.

    """
    zero = f32(0)
    sum_x, sum_w = zero, zero
    for j in range(33):
        store(sums[0], j * LANES, sum_x)
        store(sums[1], j * LANES, sum_w)
        if j < 32:
            w = load(weights, j * LANES)
            sum_x = sum_x + w * load(values, j * LANES)
            sum_w = sum_w + w
    low, middle, high = f32(-0.875), f32(DELTA), f32(1.125)
    for j in range(33):
        above, heavy = sum_x - load(sums[0], j * LANES), sum_w - load(sums[1], j * LANES)
        store(sums[2], j * LANES, above * high)
        store(sums[3], j * LANES, above * negative(low))
        store(sums[4], j * LANES, heavy * high * high)
        store(sums[5], j * LANES, heavy * low * low)
    best, scale = f32(_NONE), zero
    first, second, shift = i32(-1), i32(-1), i32(0)
    for i1 in range(33):
        x1, w1 = load(sums[0], i1 * LANES), load(sums[1], i1 * LANES)
        x_plus, x_minus = x1 * low, x1 * negative(high)
        w_plus, w_minus = w1 * low * low, w1 * high * high
        for i2 in range(i1, 33):
            x2 = (load(sums[0], i2 * LANES) - x1) * middle
            w2 = (load(sums[1], i2 * LANES) - w1) * middle * middle
            sum_qx = x_plus + x2 + load(sums[2], i2 * LANES)
            sum_q2 = w_plus + w2 + load(sums[4], i2 * LANES)
            better = (sum_q2 > zero) & (sum_qx * sum_qx > best * sum_q2)
            if any_lane(better):
                scale = select(better, sum_qx / sum_q2, scale)
                best = select(better, scale * sum_qx, best)
                first, second = select(better, i32(i1), first), select(better, i32(i2), second)
                shift = select(better, i32(1), shift)
            sum_qx = x_minus - x2 + load(sums[3], i2 * LANES)
            sum_q2 = w_minus + w2 + load(sums[5], i2 * LANES)
            better = (sum_q2 > zero) & (sum_qx * sum_qx > best * sum_q2)
            if any_lane(better):
                scale = select(better, sum_qx / sum_q2, scale)
                best = select(better, scale * sum_qx, best)
                first, second = select(better, i32(i1), first), select(better, i32(i2), second)
                shift = select(better, i32(0), shift)
    return first, second, scale, shift


@compiled
def encode_iq1_s(tiles, importance, lists, out, odd_blocks):
    """IQ1_S: sub-blocks of 32, each with a centre."""
    x32, weight, weights = np.empty((3, 32 * LANES), np.float32)
    values = np.full((32 + 1) * LANES, np.inf, np.float32)
    order, levels = np.empty((2, (32 + 1) * LANES), np.int32)
    sums = np.empty((6, 33 * LANES), np.float32)
    chosen = np.empty((4, LANES), np.int32)
    borders = np.empty(LANES, np.int32), np.empty(LANES, np.float32), np.empty(LANES, np.int32)
    runs = make_runs(1)
    columns = np.empty(256 * LANES, np.float32)
    scales = np.empty(8 * LANES, np.float32)
    halves, flags = np.empty(25 * LANES, np.int32), np.empty(LANES, np.int32)
    shifts = np.empty(8 * LANES, np.int32)
    zero, nothing = f32(0), i32(0)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        importance_tile(importance, group, 256, columns)
        sum_x2 = sum_of_squares(x, 0, 256)
        sigma2 = f32(2) * sum_x2 / f32(256)
        odd = sum_x2 > f32(LARGEST * LARGEST)
        for sub in range(8):
            weigh(x, 32 * sub, 32, sigma2, columns, weight)
            far = take(x, 32 * sub, 32, x32, weight, values, weights, order)
            sort(SORT_32, values, weights, order)
            first, second, scale, shift = _split_32(values, weights, sums)
            blank = (far < f32(_SMALLEST_S)) | (first < nothing)
            levels_by_rank(x32, 32, values, order, first, second, borders, levels)
            turned = scale < zero
            scale = select(turned, negative(scale), scale)
            shift = select(turned, i32(1) - shift, shift)
            centre = centre_of(shift == i32(1))
            on_grid = zero == zero
            sum_qx, sum_q2 = zero, zero
            for k in range(4):
                on_grid = on_grid & place_group(
                    lists, x32, weight, k, levels, turned, scale, centre, chosen[k], runs
                )
                code = load(chosen[k], 0)
                for i in range(8):
                    q = value_of(code, i, centre)
                    wq = load(weight, (8 * k + i) * LANES) * q
                    sum_qx = sum_qx + wq * load(x32, (8 * k + i) * LANES)
                    sum_q2 = sum_q2 + wq * q
            better = (sum_qx > zero) & (sum_q2 > zero)
            fitted = select(better, sum_qx / sum_q2, scale)
            scale = select(on_grid, scale, fitted)
            store(scales, sub * LANES, select(blank, zero, scale))
            high = nothing
            for k in range(4):
                number_points(lists, chosen[k], 1)
                number = select(blank, nothing, load(chosen[k], 0))
                store(chosen[k], 0, number)
                high = high | ((number >> i32(8)) << i32(3 * k))
            for pair in range(2):
                half = load(chosen[2 * pair], 0) & i32(255)
                half = half | ((load(chosen[2 * pair + 1], 0) & i32(255)) << i32(8))
                store_half(halves, 1 + 2 * sub + pair, half)
            store_half(halves, 17 + sub, high)
            store(shifts, sub * LANES, select(blank, i32(1), shift))
        d, blank, strange = scale_levels(scales, 8)
        for sub in range(8):
            level = to_int(load(scales, sub * LANES))
            level = level | ((i32(1) - load(shifts, sub * LANES)) << i32(3))
            high = load(halves, (17 + sub) * LANES) | select(blank, nothing, level << i32(12))
            store_half(halves, 17 + sub, high)
        d_bits = half_bits(d * f32(_FUDGE_S))
        store_half(halves, 0, d_bits)
        odd = odd | strange | (d_bits >= i32(INFINITE))
        write_blocks(halves, 25, group, odd, out, odd_blocks, flags)


@inlined
def _split_16(values, weights, order, sums):
    """The best split of 16 sorted weights, whose halves may have centres of their own.

    Returns:
        the ranks where the middle and the highest level begin (-1 where there is none), the
        scale, and a bit for each half whose centre is below 0 (the second's is the lower bit).

    """
    zero = f32(0)
    high, low = f32(1.125), f32(0.875)  # the highest values around both centres
    for half in range(2):
        sum_x, sum_w = zero, zero
        for j in range(17):
            store(sums[5 * half], j * LANES, sum_x)
            store(sums[5 * half + 1], j * LANES, sum_w * f32(0.75))
            store(sums[5 * half + 2], j * LANES, sum_w * f32(-1.25))
            store(sums[5 * half + 3], j * LANES, sum_w * f32(1.25))
            store(sums[5 * half + 4], j * LANES, sum_w * f32(-0.75))
            if j < 16:
                w = load(weights, j * LANES)
                mine = (load(order, j * LANES) >> i32(3)) == i32(half)
                sum_x = select(mine, sum_x + w * load(values, j * LANES), sum_x)
                sum_w = select(mine, sum_w + w, sum_w)
        if half == 0:
            x_a, w_a = sum_x, sum_w
        else:
            x_b, w_b = sum_x, sum_w
    xp_a, xm_a, xp_b, xm_b = x_a * high, x_a * low, x_b * high, x_b * low
    wp_a, wm_a, wp_b, wm_b = w_a * high * high, w_a * low * low, w_b * high * high, w_b * low * low
    best, scale = f32(_NONE), zero
    first, second, shift = i32(-1), i32(-1), i32(0)
    for i1 in range(17):
        at = i1 * LANES
        x1_a, x1_b = load(sums[0], at), load(sums[5], at)
        p1_a, m1_a = wp_a + load(sums[1], at), wm_a + load(sums[3], at)
        p1_b, m1_b = wp_b + load(sums[6], at), wm_b + load(sums[8], at)
        for i2 in range(i1, 17):
            at = i2 * LANES
            x2_a, x2_b = x1_a + load(sums[0], at), x1_b + load(sums[5], at)
            qx_a, qx_b = (xp_a - x2_a, xm_a - x2_a), (xp_b - x2_b, xm_b - x2_b)
            q2_a = (p1_a + load(sums[2], at), m1_a + load(sums[4], at))
            q2_b = (p1_b + load(sums[7], at), m1_b + load(sums[9], at))
            for k in range(4):
                sum_qx, sum_q2 = qx_a[k // 2] + qx_b[k % 2], q2_a[k // 2] + q2_b[k % 2]
                better = (sum_q2 > zero) & (sum_qx * sum_qx > best * sum_q2)
                if any_lane(better):
                    scale = select(better, sum_qx / sum_q2, scale)
                    best = select(better, scale * sum_qx, best)
                    first = select(better, i32(i1), first)
                    second = select(better, i32(i2), second)
                    shift = select(better, i32(k), shift)
    return first, second, scale, shift


@inlined
def _weigh(x, start, importance, sigma2, columns, weight):
    if importance.size:
        weigh(x, start, 16, sigma2, columns, weight)
    else:
        weigh_by_square(x, start, 16, weight)


@compiled
def encode_iq1_m(tiles, importance, lists, out, odd_blocks):
    """IQ1_M: sub-blocks of 16, each of whose groups has a centre."""
    x16, weight, weights = np.empty((3, 16 * LANES), np.float32)
    values = np.full((16 + 1) * LANES, np.inf, np.float32)
    order, levels = np.empty((2, (16 + 1) * LANES), np.int32)
    sums = np.empty((10, 17 * LANES), np.float32)
    chosen, codes = np.empty((2, LANES), np.int32), np.empty(32 * LANES, np.int32)
    borders = np.empty(LANES, np.int32), np.empty(LANES, np.float32), np.empty(LANES, np.int32)
    runs = make_runs(1)
    columns = np.empty(256 * LANES, np.float32)
    scales, shifts = np.empty(16 * LANES, np.float32), np.empty(16 * LANES, np.int32)
    halves, flags = np.empty(28 * LANES, np.int32), np.empty(LANES, np.int32)
    zero, nothing = f32(0), i32(0)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        if importance.size:
            importance_tile(importance, group, 256, columns)
        sum_x2 = sum_of_squares(x, 0, 256)
        sigma2 = f32(2) * sum_x2 / f32(256)
        odd = sum_x2 > f32(LARGEST * LARGEST)
        for sub in range(16):
            _weigh(x, 16 * sub, importance, sigma2, columns, weight)
            far = take(x, 16 * sub, 16, x16, weight, values, weights, order)
            sort(SORT_16, values, weights, order)
            first, second, scale, shift = _split_16(values, weights, order, sums)
            blank = (far < f32(_SMALLEST_M)) | (first < nothing)
            levels_by_rank(x16, 16, values, order, first, second, borders, levels)
            turned = scale < zero
            scale = select(turned, negative(scale), scale)
            shift = select(blank, nothing, select(turned, i32(3) - shift, shift))
            store(shifts, sub * LANES, shift)
            on_grid = zero == zero
            sum_qx, sum_q2 = zero, zero
            for k in range(2):
                centre = centre_of((shift & i32(2 - k)) == nothing)
                on_grid = on_grid & place_group(
                    lists, x16, weight, k, levels, turned, scale, centre, chosen[k], runs
                )
                code = load(chosen[k], 0)
                for i in range(8):
                    q = value_of(code, i, centre)
                    wq = load(weight, (8 * k + i) * LANES) * q
                    sum_qx = sum_qx + wq * load(x16, (8 * k + i) * LANES)
                    sum_q2 = sum_q2 + wq * q
                store(codes, (2 * sub + k) * LANES, select(blank, nothing, code))
            better = (sum_qx > zero) & (sum_q2 > zero)
            fitted = select(better, sum_qx / sum_q2, scale)
            scale = select(on_grid, scale, fitted)
            store(scales, sub * LANES, select(blank, zero, scale))
        d, blank, strange = scale_levels(scales, 16)
        sum_qx, sum_q2 = zero, zero
        for sub in range(16):
            _weigh(x, 16 * sub, importance, sigma2, columns, weight)
            shift, multiple = load(shifts, sub * LANES), load(scales, sub * LANES)
            multiple = f32(2) * multiple + f32(1)
            for k in range(2):
                centre = centre_of((shift & i32(2 - k)) == nothing)
                code = load(codes, (2 * sub + k) * LANES)
                for i in range(8):
                    q = value_of(code, i, centre) * multiple
                    wq = load(weight, (8 * k + i) * LANES) * q
                    sum_qx = sum_qx + wq * load(x, (16 * sub + 8 * k + i) * LANES)
                    sum_q2 = sum_q2 + wq * q
        d = select(sum_q2 > zero, sum_qx / sum_q2, d)
        d_bits = select(blank, nothing, half_bits(d * f32(_FUDGE_M)))
        number_points(lists, codes, 32)
        for pair in range(8):
            high = nothing
            for k in range(2):
                sub = 2 * pair + k
                a, b = load(codes, 2 * sub * LANES), load(codes, (2 * sub + 1) * LANES)
                store_half(halves, sub, (a & i32(255)) | ((b & i32(255)) << i32(8)))
                shift = load(shifts, sub * LANES)
                centres = ((shift & i32(1)) << i32(7)) | ((shift & i32(2)) << i32(2))
                byte = (a >> i32(8)) | ((b >> i32(8)) << i32(4))
                byte = byte | select(blank, nothing, centres)
                high = high | (byte << i32(8 * k))
            store_half(halves, 16 + pair, high)
        for quad in range(4):
            half = ((d_bits >> i32(4 * quad)) & i32(15)) << i32(12)
            for k in range(4):
                level = to_int(load(scales, (4 * quad + k) * LANES))
                half = half | (level << i32(3 * k))
            store_half(halves, 24 + quad, select(blank, nothing, half))
        odd = odd | strange | ((d_bits & i32(INFINITE)) == i32(INFINITE))
        write_blocks(halves, 28, group, odd, out, odd_blocks, flags)
