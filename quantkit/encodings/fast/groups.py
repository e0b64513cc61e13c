"""Groups of weights on the points of a grid, in the sub-blocks of an i-quant.

ggml tries a number of scales for each sub-block. For each it rounds every group to a cell, takes
the point there or the nearest, and keeps the scale with which the points fit best; then it tries
the scale that came of the fit. Here the candidates of a group are worked on together: their cells
with a block per lane, the nearest points with candidates in lanes (see ``nearest``), the sums again
with a block per lane.
"""

from collections import namedtuple

import numpy as np

from quantkit.encodings.fast.grids import ON_GRID, WHOLE_CELLS
from quantkit.encodings.fast.jit import inlined
from quantkit.encodings.fast.nearest import (
    find_point_of_eight,
    find_point_of_four,
    find_points_of_eight,
    find_points_of_four,
    make_runs,
    row_of,
    to_rows,
)
from quantkit.encodings.fast.search import least, level_between, most, rounded
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
    to_float,
    to_int,
)

# Nearer to the border of a half cell, in units of the scale, rounding may decide. The errors of
# quotient, products and differences there are below 3e-6.
_NEAR = 1e-5
_FARTHEST = 4e6  # in units of the scale: ggml's rounding wraps around beyond
TINIEST = 1e-30  # a magnitude or scale whose inverse is finite
# Which groups the last search is for: those off the grid, all if any is, all in any case.
OFF_GRID, ANY_OFF_GRID, ALWAYS = range(3)

# Working memory for a sub-block: tiles of what its name says.
Room = namedtuple("Room", "x weight root inverses scales sum_qx sum_q2 points chosen signs runs")


@inlined
def make_room(n_candidates, n_groups, n):
    """Room for sub-blocks of ``n`` weights in ``n_groups`` groups."""
    per_candidate = np.empty((4, row_of(n_candidates) * LANES), np.float32)
    per_weight = np.empty((3, n * LANES), np.float32)
    return Room(
        per_weight[0],
        per_weight[1],
        per_weight[2],
        per_candidate[0],
        per_candidate[1],
        per_candidate[2],
        per_candidate[3],
        np.zeros((n_groups, row_of(n_candidates) * LANES), np.int32),
        np.empty(n_groups * LANES, np.int32),
        np.empty(n // 8 * LANES, np.int32),
        make_runs(n_candidates),
    )


@inlined
def half_cell(y, n_levels):
    """In which half of a cell coordinates lie, from 0 on; the mask of those near to its border."""
    y = most(least(y, f32(2 * n_levels - 1.25)), f32(1.25))
    return to_int(y) - i32(1), absolute(y - rounded(y)) < f32(_NEAR)


@inlined
def find_cells(x, start, size, n_levels, inverses, n, keys):
    """The keys, for ``grids.Lists``, of one group under ``n`` inverse scales."""
    key_bits, level_bits = 16 // size, 3 if size == 4 else 2
    for candidate in range(n):
        inverse = load(inverses, candidate * LANES)
        key = i32(0)
        unsure = inverse != inverse
        for i in range(size):
            side, near = half_cell(inverse * load(x, (start + i) * LANES), n_levels)
            unsure = unsure | near
            key = key | (side << i32(key_bits * i))
        if any_lane(unsure):
            cell = i32(WHOLE_CELLS)
            for i in range(size):
                y = inverse * load(x, (start + i) * LANES)
                level = level_between(f32(0.5) * (y - f32(1)), f32(0), f32(n_levels - 1))
                cell = cell | (to_int(level) << i32(level_bits * i))
            key = select(unsure, cell, key)
        store(keys, candidate * LANES, key)


@inlined
def _find_points(lists, points, n, room, start, size):
    if size == 4:
        find_points_of_four(lists, points, n, room.x, room.root, start, room.runs)
    else:
        find_points_of_eight(lists, points, n, room.x, room.root, start, room.runs)


@inlined
def _find_point(lists, points, room, start, size):
    if size == 4:
        find_point_of_four(lists, points, room.x, room.root, start, room.runs)
    else:
        find_point_of_eight(lists, points, room.x, room.root, start, room.runs)


@inlined
def _origin(size):
    """The code of the point whose levels are all 0; its number is 0."""
    return 0x1111 if size == 4 else 0


@inlined
def coordinate(point, i, size):
    """The ``i``-th coordinate of each point: 1, 3, 5, ..."""
    if size == 4:
        return to_float((point >> i32(4 * i)) & i32(15))
    twice = point << i32(1)
    return to_float(((twice >> i32(2 * i)) & i32(6)) | i32(1))


@inlined
def add_products(x, weight, start, size, point, sum_qx, sum_q2):
    """Add a group's weighted sums of coordinate times weight and of coordinate squared."""
    for i in range(size):
        w, q = load(weight, (start + i) * LANES), coordinate(point, i, size)
        sum_qx = sum_qx + w * load(x, (start + i) * LANES) * q
        sum_q2 = sum_q2 + w * q * q
    return sum_qx, sum_q2


@inlined
def _split_signs(x, start, room, group, even):
    """Magnitudes of eight weights into the room; a bit for each that is negative.

    With ``even`` the number of bits is even: where it is not, the weight whose error counts least
    takes the other sign, and a magnitude below 0.
    """
    zero = f32(0)
    signs = i32(0)
    flips = i32(0)
    for i in range(8):
        value = load(x, (start + i) * LANES)
        below = value < zero
        store(room.x, (8 * group + i) * LANES, select(below, negative(value), value))
        signs = signs | select(below, i32(1 << i), i32(0))
        flips = flips + select(below, i32(1), i32(0))
    if not even:
        return signs
    value = load(x, start * LANES)
    smallest = load(room.weight, 8 * group * LANES) * value * value
    which = i32(0)
    for i in range(1, 8):
        value = load(x, (start + i) * LANES)
        size = load(room.weight, (8 * group + i) * LANES) * value * value
        smaller = size < smallest
        smallest = select(smaller, size, smallest)
        which = select(smaller, i32(i), which)
    odd = (flips & i32(1)) == i32(1)
    for i in range(8):
        flipped = odd & (which == i32(i))
        value = load(room.x, (8 * group + i) * LANES)
        store(room.x, (8 * group + i) * LANES, select(flipped, negative(value), value))
        signs = select(flipped, (signs | i32(1 << i)) - (signs & i32(1 << i)), signs)
    return signs & i32(127)


@inlined
def take_magnitudes(x, start, n, even, room):
    """Magnitudes and signs of a sub-block that was weighed, and the roots of what they count.

    Returns:
        the greatest magnitude, and how far from 0 any is: one that took a sign is below.

    """
    for i in range(n):
        store(room.root, i * LANES, sqrt(load(room.weight, i * LANES)))
    for group in range(n // 8):
        store(room.signs, group * LANES, _split_signs(x, start + 8 * group, room, group, even))
    greatest = load(room.x, 0)
    reach = absolute(greatest)
    for i in range(1, n):
        value = load(room.x, i * LANES)
        greatest = most(greatest, value)
        reach = most(reach, absolute(value))
    return greatest, reach


@inlined
def settle(room, n, size, even, scale, blank):
    """Clear what is blank, and turn signs where the scale is below 0; the scale without its own."""
    below = scale < f32(0)
    for k in range(n // 8):
        signs = load(room.signs, k * LANES)
        signs = select(below, i32(127 if even else 255) - signs, signs)
        store(room.signs, k * LANES, select(blank, i32(0), signs))
    for group in range(n // size):
        point = load(room.chosen, group * LANES)
        store(room.chosen, group * LANES, select(blank, i32(_origin(size)), point))
    return select(blank, f32(0), select(below, negative(scale), scale))


@inlined
def scale_levels(scales, n):
    """Levels of scales as odd multiples of a 31st of the greatest, where the scales were.

    Returns:
        that part, the mask of lanes where it is 0, and the mask of odd lanes.

    """
    zero, far = f32(0), f32(0)
    for sub in range(n):
        far = most(far, load(scales, sub * LANES))
    blank = far == zero
    d = far / f32(31)
    inverse = f32(1) / d
    for sub in range(n):
        twice = inverse * load(scales, sub * LANES) - f32(1)
        level = level_between(f32(0.5) * twice, zero, f32(15))
        store(scales, sub * LANES, select(blank, zero, level))
    return d, blank, (far < f32(TINIEST)) & (far > zero)


@inlined
def search_groups(room, lists, numerators, divisor, reach, scale, n, size, n_levels, again):
    """The scale of each sub-block and the points of its groups, into ``room.chosen``.

    Args:
        room: with magnitudes and what they count.
        lists: of the grid.
        numerators: the candidates' inverse scales, before they are divided.
        divisor: by what; a vector.
        reach: how far from 0 any magnitude is.
        scale: to keep if no candidate fits at all.
        n: weights per sub-block.
        size: of a group.
        n_levels: coordinates are 1, 3, ... ``2 * n_levels - 1``.
        again: ``OFF_GRID``, ``ANY_OFF_GRID`` or ``ALWAYS``.

    Returns:
        scale, and the mask of odd lanes.

    """
    zero, one = f32(0), f32(1)
    n_groups, n_candidates = n // size, len(numerators)
    for candidate in range(n_candidates):
        inverse = f32(numerators[candidate]) / divisor
        store(room.inverses, candidate * LANES, inverse)
        store(room.scales, candidate * LANES, one / inverse)
        store(room.sum_qx, candidate * LANES, zero)
        store(room.sum_q2, candidate * LANES, zero)
    to_rows(room.scales, n_candidates, room.runs.scales)
    for group in range(n_groups):
        points = room.points[group]
        find_cells(room.x, size * group, size, n_levels, room.inverses, n_candidates, points)
        _find_points(lists, points, n_candidates, room, size * group, size)
        for candidate in range(n_candidates):
            sum_qx, sum_q2 = add_products(
                room.x,
                room.weight,
                size * group,
                size,
                load(points, candidate * LANES),
                load(room.sum_qx, candidate * LANES),
                load(room.sum_q2, candidate * LANES),
            )
            store(room.sum_qx, candidate * LANES, sum_qx)
            store(room.sum_q2, candidate * LANES, sum_q2)
        store(
            room.chosen, group * LANES, i32(_origin(size) | (ON_GRID if again == OFF_GRID else 0))
        )
    best = zero
    for candidate in range(n_candidates):
        sum_qx, sum_q2 = load(room.sum_qx, candidate * LANES), load(room.sum_q2, candidate * LANES)
        better = (sum_q2 > zero) & (sum_qx * sum_qx > best * sum_q2)
        if any_lane(better):
            scale = select(better, sum_qx / sum_q2, scale)
            best = select(better, scale * sum_qx, best)
            for group in range(n_groups):
                point = load(room.points[group], candidate * LANES)
                kept = load(room.chosen, group * LANES)
                store(room.chosen, group * LANES, select(better, point, kept))
    scale, odd = _search_once_more(room, lists, reach, scale, n, size, n_levels, again)
    return scale, odd | (f32(numerators[n_candidates - 1]) / divisor * reach > f32(_FARTHEST))


@inlined
def _search_once_more(room, lists, reach, scale, n, size, n_levels, again):
    """Points and scale anew, from the scale that the candidates came to; and the odd lanes."""
    zero, on_grid = f32(0), i32(ON_GRID)
    n_groups = n // size
    flags = on_grid
    for group in range(n_groups):
        flags = flags & load(room.chosen, group * LANES)
    wanted = scale > zero
    if again != ALWAYS:
        wanted = wanted & (flags != on_grid)
    inverse = f32(1) / scale
    odd = wanted & (inverse * reach > f32(_FARTHEST))
    if any_lane(wanted):
        store(room.inverses, 0, inverse)
        for level in range(1 if size == 4 else 3):
            store(room.runs.scales, level * LANES, f32(2 * level + 1) * scale)
        sum_qx, sum_q2 = zero, zero
        for group in range(n_groups):
            points = room.points[group]
            find_cells(room.x, size * group, size, n_levels, room.inverses, 1, points)
            _find_point(lists, points, room, size * group, size)
            point = load(room.chosen, group * LANES)
            redone = wanted
            if again == OFF_GRID:
                redone = wanted & ((point & on_grid) != on_grid)
            point = select(redone, load(points, 0), point)
            store(room.chosen, group * LANES, point)
            sum_qx, sum_q2 = add_products(
                room.x, room.weight, size * group, size, point, sum_qx, sum_q2
            )
        scale = select(wanted & (sum_q2 > zero), sum_qx / sum_q2, scale)
    return scale, odd
