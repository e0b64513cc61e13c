"""Sub-blocks of three levels, sorted so that they can be split: what IQ1_S and IQ1_M share.

ggml sorts the weights of a sub-block and tries every way to split them into those of the lowest,
the middle and the highest level. It sorts with ``qsort``, which in glibc is a merge sort: equal
weights stay in their order.
"""

import numpy as np

from quantkit.encodings.fast.grids import ON_GRID, WHOLE_CELLS
from quantkit.encodings.fast.groups import TINIEST, half_cell
from quantkit.encodings.fast.jit import inlined
from quantkit.encodings.fast.nearest import find_point_of_eight
from quantkit.encodings.fast.search import level_between, most
from quantkit.encodings.fast.simd import (
    LANES,
    absolute,
    f32,
    i32,
    load,
    select,
    store,
    to_float,
)

DELTA = 0.125  # IQ1S_DELTA, IQ1M_DELTA


def _comparators(n):
    """Batcher's network: the pairs of places whose elements are put in order, one after another."""
    pairs = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                pairs += [
                    (i + j, i + j + k)
                    for i in range(min(k, n - j - k))
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p)
                ]
            k //= 2
        p *= 2
    return np.array(pairs, np.int32)


SORT_32, SORT_16 = _comparators(32), _comparators(16)


@inlined
def take(x, start, n, room_x, room_weight, values, weights, order):
    """A sub-block where it is searched and where it is sorted; its greatest magnitude."""
    far = f32(0)
    for i in range(n):
        value = load(x, (start + i) * LANES)
        store(room_x, i * LANES, value)
        store(values, i * LANES, value)
        store(weights, i * LANES, load(room_weight, i * LANES))
        store(order, i * LANES, i32(i))
        far = most(far, absolute(value))
    return far


@inlined
def sort(network, values, weights, order):
    """Sort by value, equals by their place."""
    for k in range(len(network)):
        a, b = network[k, 0] * LANES, network[k, 1] * LANES
        first, second = load(values, a), load(values, b)
        place, other = load(order, a), load(order, b)
        swap = (second < first) | ((second == first) & (other < place))
        w, v = load(weights, a), load(weights, b)
        store(values, a, select(swap, second, first))
        store(values, b, select(swap, first, second))
        store(order, a, select(swap, other, place))
        store(order, b, select(swap, place, other))
        store(weights, a, select(swap, v, w))
        store(weights, b, select(swap, w, v))


@inlined
def _border(values, order, ranks, edge, places):
    """The weight at a rank and its place, lane by lane."""
    for lane in range(LANES):
        at = max(ranks[lane], 0) * LANES + lane
        edge[lane], places[lane] = values[at], order[at]
    return load(edge, 0), load(places, 0)


@inlined
def _before(value, place, border):
    edge, edge_place = border
    return (value < edge) | ((value == edge) & (place < edge_place))


@inlined
def levels_by_rank(x, n, values, order, first, second, room, levels):
    """Level 0 for the weights below rank ``first``, 1 below ``second``, else 2.

    ``values`` and ``order`` are sorted; a row of infinity follows them.
    """
    ranks, edge, places = room
    store(ranks, 0, first)
    low = _border(values, order, ranks, edge, places)
    store(ranks, 0, second)
    high = _border(values, order, ranks, edge, places)
    for i in range(n):
        value, place = load(x, i * LANES), i32(i)
        level = select(_before(value, place, high), i32(1), i32(2))
        store(levels, i * LANES, select(_before(value, place, low), i32(0), level))


@inlined
def centre_of(plus):
    """Of the levels: 0.125 or -0.125."""
    return select(plus, f32(DELTA), f32(-DELTA))


@inlined
def place_group(lists, x, weight, group, levels, turned, scale, centre, chosen, runs):
    """The point of a group of levels, or that nearest to its weights; whether it is its own.

    The split mostly gives each weight the level nearest to it. Then the short lists of half cells
    serve, else those of whole cells.
    """
    whole, half = i32(WHOLE_CELLS), i32(0)
    inverse = f32(1) / scale
    apart = scale < f32(TINIEST)
    for i in range(8):
        level = load(levels, (8 * group + i) * LANES)
        level = select(turned, i32(2) - level, level)
        whole = whole | (level << i32(2 * i))
        y = f32(2) * (inverse * load(x, (8 * group + i) * LANES) - centre) + f32(3)
        side, unsure = half_cell(y, 3)
        apart = apart | unsure | (level != ((side + i32(1)) >> i32(1)))
        half = half | (side << i32(2 * i))
    store(chosen, 0, select(apart, whole, half))
    for level in range(3):
        store(runs.scales, level * LANES, scale * (f32(level - 1) + centre))
    find_point_of_eight(lists, chosen, x, weight, 8 * group, runs)
    return (load(chosen, 0) & i32(ON_GRID)) == i32(ON_GRID)


@inlined
def value_of(code, i, centre):
    """What the ``i``-th level of a point stands for, in units of the scale."""
    return to_float(((code >> i32(2 * i)) & i32(3)) - i32(1)) + centre


@inlined
def scale_levels(scales, n):
    """Levels of scales as odd multiples of a 15th of the greatest; that part, blank, odd lanes."""
    zero, far = f32(0), f32(0)
    for sub in range(n):
        far = most(far, load(scales, sub * LANES))
    d = far / f32(15)
    inverse = f32(1) / d
    for sub in range(n):
        twice = inverse * load(scales, sub * LANES) - f32(1)
        store(scales, sub * LANES, level_between(f32(0.5) * twice, zero, f32(7)))
    return d, far == zero, (far < f32(TINIEST)) & (far > zero)
