"""ggml's search for the scales of a block of Q3_K without importance; `search` has the others."""

from collections import namedtuple

import numpy as np

from quantkit.encodings.fast.jit import inlined
from quantkit.encodings.fast.search import (
    LARGEST,
    ROUNDS,
    SMALLEST,
    farthest,
    level_between,
    refine_levels,
    refine_once,
)
from quantkit.encodings.fast.simd import LANES, any_lane, f32, i32, load, select, store
from quantkit.encodings.fast.weighing import weigh_by_square

# Working memory for Q3_K's search. Tiles of one sub-block: weights, importance, levels. Of all
# sub-blocks: sums, which are blank, in which a level changed, and the places of those, which are
# ``sub-block * LANES + lane``. Of one: sums. The odd lanes of all and of one.
Q3Room = namedtuple(
    "Q3Room", "x weight levels sums blank changed places packed_sums odd packed_odd"
)


@inlined
def make_q3_room(n, n_sub):
    """Working memory for ``search_q3_scales`` of ``n_sub`` sub-blocks of ``n`` weights."""
    per_weight = np.empty((3, n * LANES), np.float32)
    sums = np.empty((2, n_sub * LANES), np.float32)
    packed_sums = np.empty((2, LANES), np.float32)
    blank, changed, places = np.empty((3, n_sub * LANES), np.int32)
    odd, packed_odd = np.empty((2, LANES), np.int32)
    return Q3Room(
        per_weight[0],
        per_weight[1],
        per_weight[2],
        sums,
        blank,
        changed,
        places,
        packed_sums,
        odd,
        packed_odd,
    )


@inlined
def _settle(x, n, bottom, top, places, levels, room):
    """The rounds after the first for the sub-blocks at some places, one in each lane."""
    for lane in range(LANES):
        place = places[min(lane, len(places) - 1)]
        first = place // LANES * n * LANES + place % LANES
        for i in range(n):
            room.x[i * LANES + lane] = x[first + i * LANES]
            room.levels[i * LANES + lane] = levels[first + i * LANES]
        for k in range(2):
            room.packed_sums[k, lane] = room.sums[k, place]
    weigh_by_square(room.x, 0, n, room.weight)
    sum_lx, sum_l2, odd = refine_levels(
        room.x,
        0,
        room.weight,
        n,
        bottom,
        top,
        f32(-np.inf),
        ROUNDS - 1,
        room.levels,
        load(room.packed_sums[0], 0),
        load(room.packed_sums[1], 0),
        bottom > top,
    )
    store(room.packed_sums[0], 0, sum_lx)
    store(room.packed_sums[1], 0, sum_l2)
    store(room.packed_odd, 0, select(odd, i32(1), i32(0)))
    for lane in range(len(places)):
        place = places[lane]
        first = place // LANES * n * LANES + place % LANES
        for i in range(n):
            levels[first + i * LANES] = room.levels[i * LANES + lane]
        for k in range(2):
            room.sums[k, place] = room.packed_sums[k, lane]
        room.odd[place % LANES] |= room.packed_odd[lane]


@inlined
def search_q3_scales(x, n, n_sub, nmax, room, levels, scales):
    """Scales of all sub-blocks: ``make_q3_quants``, weights squared being their importance.

    Most sub-blocks are settled after one round of the refinement, but hardly ever all that lie
    side by side. So those that are not are put together in lanes of their own for the rounds that
    are left.

    Args:
        x: the weights.
        n: elements per sub-block.
        n_sub: how many sub-blocks.
        nmax: levels go from ``-nmax`` to ``nmax - 1``.
        room: from ``make_q3_room``.
        levels: gets the levels.
        scales: gets the scales.

    Returns:
        the mask of odd lanes.

    """
    zero, bottom, top, any_sl2 = f32(0), f32(-nmax), f32(nmax - 1), f32(-np.inf)
    odd = zero < zero
    for j in range(n_sub):
        far, magnitude = farthest(x, n * j, n)
        odd = odd | (magnitude > f32(LARGEST))
        blank = magnitude < f32(SMALLEST)
        store(room.blank, j * LANES, select(blank, i32(1), i32(0)))
        inverse = select(blank, zero, bottom / far)
        weigh_by_square(x, n * j, n, room.weight)
        sum_lx, sum_l2 = zero, zero
        for i in range(n):
            value, w = load(x, (n * j + i) * LANES), load(room.weight, i * LANES)
            level = level_between(inverse * value, bottom, top)
            store(levels, (n * j + i) * LANES, level)
            sum_lx = sum_lx + w * value * level
            sum_l2 = sum_l2 + w * level * level
        sum_lx, sum_l2, odd, changed = refine_once(
            x, n * j, room.weight, n, bottom, top, any_sl2, levels, sum_lx, sum_l2, odd
        )
        store(room.sums[0], j * LANES, sum_lx)
        store(room.sums[1], j * LANES, sum_l2)
        store(room.changed, j * LANES, select(changed, i32(1), i32(0)))
    n_places = 0
    for place in range(n_sub * LANES):
        room.places[n_places] = place
        n_places += room.changed[place]
    store(room.odd, 0, i32(0))
    for first in range(0, n_places, LANES):
        places = room.places[first : min(first + LANES, n_places)]
        _settle(x, n, bottom, top, places, levels, room)
    for j in range(n_sub):
        sum_lx, sum_l2 = load(room.sums[0], j * LANES), load(room.sums[1], j * LANES)
        blank = load(room.blank, j * LANES) != i32(0)
        scale = select(sum_l2 > zero, sum_lx / sum_l2, zero)
        store(scales, j * LANES, select(blank, zero, scale))
        if any_lane(blank):
            for i in range(n * j, n * j + n):
                level = load(levels, i * LANES)
                store(levels, i * LANES, select(blank, bottom, level))
    return odd | (load(room.odd, 0) != i32(0))
