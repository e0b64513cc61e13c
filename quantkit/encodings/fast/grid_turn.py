"""One turn of ``--search best`` on a grid: better multiples and points for a block.

Arrays are tiles, as everywhere in the kernels: a block per lane.
"""

from collections import namedtuple

import numpy as np

from quantkit.encodings.fast.halves import half_bits, half_value
from quantkit.encodings.fast.jit import inlined
from quantkit.encodings.fast.search import least, level_between, most
from quantkit.encodings.fast.simd import LANES, f32, i32, load, select, store, to_float, to_int

WIDTH = 256
# Scales of the block that the first turn tries, in its present one, which comes first.
SCALES = np.array([1, 0.97, 0.94, 1.03, 0.91], np.float32)
STEPS = 3  # multiples that are tried with each of the block's scales
_TOP_LEVEL = 15
_MOST = 3.4028234663852886e38

# Tiles of 256 weights: signed so that they should be positive, what their errors count, and both
# multiplied. Of a block's groups: the codes of their points; of eights: signs. Of sub-blocks:
# levels of their scales.
Block = namedtuple("Block", "x weight product codes signs levels")
# Of the points that are tried for a group: codes, twice the sum of product times coordinate, the
# sum of weight times its square.
Tried = namedtuple("Tried", "keys codes linear square")
# Of the scales that are tried: levels, scales, sums over a sub-block; the points that are best.
Trials = namedtuple("Trials", "levels scales error linear square codes")
# Of the block's scales that are tried: sums over the block, and the best levels and points.
Choices = namedtuple("Choices", "scales error linear square levels codes")
Room = namedtuple("Room", "tried trials choices")


@inlined
def make_room(size, n_points, subs, ways):
    """Room for turns with blocks of ``subs`` sub-blocks.

    ``n_points`` are tried for each group, and ``ways`` for a sub-block with each scale.
    """
    per_point = np.empty((2, n_points * LANES), np.float32)
    codes = np.empty(n_points * LANES, np.int32)
    tried = Tried(np.empty(LANES, np.int32), codes, per_point[0], per_point[1])
    n = ways * len(SCALES)
    per_trial = np.empty((5, n * LANES), np.float32)
    trials = Trials(
        per_trial[0],
        per_trial[1],
        per_trial[2],
        per_trial[3],
        per_trial[4],
        np.empty((WIDTH // subs // size, n * LANES), np.int32),
    )
    n = len(SCALES)
    per_scale = np.empty((4, n * LANES), np.float32)
    choices = Choices(
        per_scale[0],
        per_scale[1],
        per_scale[2],
        per_scale[3],
        np.empty((subs, n * LANES), np.float32),
        np.empty((WIDTH // size, n * LANES), np.int32),
    )
    return Room(tried, trials, choices)


@inlined
def coordinate(code, i, size, top):
    """What the ``i``-th coordinate of a point stands for."""
    if size == 4:
        q = to_float((code >> i32(4 * i)) & i32(15))
        return select(q == f32(15), top, q)
    middle = (code & i32(1 << 2 * i)) != i32(0)
    highest = (code & i32(2 << 2 * i)) != i32(0)
    return select(highest, f32(5.375), select(middle, f32(3.125), f32(1)))


@inlined
def _find_places(x, start, size, scale, keys):
    """The keys of a group, for ``near_points``."""
    key = i32(0)
    if size == 4:
        inverse = select(scale == f32(0), f32(0), f32(1) / scale)
        for i in range(4):
            y = most(least(inverse * load(x, (start + i) * LANES), f32(14.5)), f32(1.5))
            key = key | ((to_int(y) - i32(1)) << i32(4 * i))
    else:
        first, second, third = scale * f32(2.0625), scale * f32(3.1875), scale * f32(4.25)
        for i in range(8):
            value = load(x, (start + i) * LANES)
            place = select(value > first, i32(1 << 2 * i), i32(0))
            place = select(value > second, i32(2 << 2 * i), place)
            key = key | select(value > third, i32(3 << 2 * i), place)
    store(keys, 0, key)


@inlined
def _take_points(near, keys, present, n, codes):
    """The present point of each lane and the ``n`` of its place."""
    for lane in range(LANES):
        codes[lane] = present[lane]
        first = keys[lane] * n
        for k in range(n):
            codes[(k + 1) * LANES + lane] = near[first + k]


@inlined
def _sum_points(block, start, size, top, n, tried):
    """The sums of each point that is tried."""
    for k in range(n):
        code = load(tried.codes, k * LANES)
        linear, square = f32(0), f32(0)
        for i in range(size):
            q, at = coordinate(code, i, size, top), (start + i) * LANES
            linear = linear + load(block.product, at) * q
            square = square + load(block.weight, at) * q * q
        store(tried.linear, k * LANES, linear + linear)
        store(tried.square, k * LANES, square)


@inlined
def try_scales(tried, n, trials, first, n_trials, group):
    """Add the best point of a group for each scale from the ``first`` on."""
    for trial in range(n_trials):
        at = (first + trial) * LANES
        scale = load(trials.scales, at)
        best, best_linear, best_square, best_code = f32(_MOST), f32(0), f32(0), i32(0)
        for k in range(n):
            linear, square = load(tried.linear, k * LANES), load(tried.square, k * LANES)
            error = (square * scale - linear) * scale
            better = error < best
            best = select(better, error, best)
            best_linear = select(better, linear, best_linear)
            best_square = select(better, square, best_square)
            best_code = select(better, load(tried.codes, k * LANES), best_code)
        store(trials.error, at, load(trials.error, at) + best)
        store(trials.linear, at, load(trials.linear, at) + best_linear)
        store(trials.square, at, load(trials.square, at) + best_square)
        store(trials.codes[group], at, best_code)


@inlined
def list_scales(d, n_scales, choices):
    """The scales of the block to try, with nothing chosen yet."""
    for k in range(n_scales):
        store(choices.scales, k * LANES, half_value(half_bits(d * f32(SCALES[k]))))
        store(choices.error, k * LANES, f32(0))
        store(choices.linear, k * LANES, f32(0))
        store(choices.square, k * LANES, f32(0))


@inlined
def list_trials(level, top_level, scales, n_scales, ways, trials):
    """Three multiples of each of the block's scales: around the one next to the present scale.

    Where a sub-block has more ``ways`` than these, all three again for each.
    """
    multiple = f32(2) * level + f32(1)
    for k in range(n_scales):
        new = load(scales, k * LANES)
        middle = level
        if k > 0:
            wanted = multiple * f32(np.float32(1) / SCALES[k])
            middle = level_between(f32(0.5) * (wanted - f32(1)), f32(0), f32(top_level))
        for way in range(ways):
            at = (ways * k + way) * LANES
            beside = middle + f32(np.float32(way % STEPS - 1))
            beside = most(least(beside, f32(top_level)), f32(0))
            store(trials.levels, at, beside)
            store(trials.scales, at, new * (f32(2) * beside + f32(1)))
            store(trials.error, at, f32(0))
            store(trials.linear, at, f32(0))
            store(trials.square, at, f32(0))


@inlined
def choose_levels(trials, n_scales, ways, sub, n_groups, choices):
    """Add a sub-block's best multiple of each of the block's scales."""
    for k in range(n_scales):
        at = k * LANES
        for way in range(ways):
            trial = (ways * k + way) * LANES
            if way == 0:
                best = load(trials.error, trial)
                linear, square = load(trials.linear, trial), load(trials.square, trial)
                level, which = load(trials.levels, trial), i32(0)
            else:
                better = load(trials.error, trial) < best
                best = select(better, load(trials.error, trial), best)
                linear = select(better, load(trials.linear, trial), linear)
                square = select(better, load(trials.square, trial), square)
                level = select(better, load(trials.levels, trial), level)
                which = select(better, i32(way), which)
        multiple = f32(2) * level + f32(1)
        store(choices.error, at, load(choices.error, at) + best)
        store(choices.linear, at, load(choices.linear, at) + multiple * linear)
        store(choices.square, at, load(choices.square, at) + multiple * multiple * square)
        store(choices.levels[sub], at, level)
        for group in range(n_groups):
            codes = trials.codes[group]
            code = load(codes, ways * k * LANES)
            for way in range(1, ways):
                other = load(codes, (ways * k + way) * LANES)
                code = select(which == i32(way), other, code)
            store(choices.codes[sub * n_groups + group], at, code)


@inlined
def choose_scale(choices, n_scales, subs, groups, block):
    """Take over what is best with one of the block's scales; its sums."""
    best, linear, square = load(choices.error, 0), load(choices.linear, 0), load(choices.square, 0)
    which = i32(0)
    for k in range(1, n_scales):
        better = load(choices.error, k * LANES) < best
        best = select(better, load(choices.error, k * LANES), best)
        linear = select(better, load(choices.linear, k * LANES), linear)
        square = select(better, load(choices.square, k * LANES), square)
        which = select(better, i32(k), which)
    for k in range(n_scales):
        mine = which == i32(k)
        for sub in range(subs):
            level = select(mine, load(choices.levels[sub], k * LANES), load(block.levels[sub], 0))
            store(block.levels[sub], 0, level)
        for group in range(groups):
            code = select(mine, load(choices.codes[group], k * LANES), load(block.codes[group], 0))
            store(block.codes[group], 0, code)
    return f32(0.5) * linear, square


@inlined
def take_turn(block, near, size, n_points, subs, top, d, n_scales, room):
    """Put better multiples and points into the block.

    Args:
        block: the present solution.
        near: codes of ``near_points``.
        size: of a group.
        n_points: how many a place has there.
        subs: sub-blocks.
        top: what the highest of eight levels stands for.
        d: scales of the blocks, values of float16.
        n_scales: how many of ``SCALES`` are tried.
        room: from ``make_room``.

    Returns:
        of what is now in the block, with a scale of 1, the weighted sums of decoded times weight
        and of decoded squared.

    """
    tried, trials, choices = room.tried, room.trials, room.choices
    width = WIDTH // subs
    n_groups = width // size
    list_scales(d, n_scales, choices)
    for sub in range(subs):
        level = load(block.levels[sub], 0)
        scale = d * (f32(2) * level + f32(1))
        list_trials(level, _TOP_LEVEL, choices.scales, n_scales, STEPS, trials)
        for group in range(n_groups):
            start = sub * width + group * size
            _find_places(block.x, start, size, scale, tried.keys)
            present = block.codes[sub * n_groups + group]
            _take_points(near, tried.keys, present, n_points, tried.codes)
            _sum_points(block, start, size, top, n_points + 1, tried)
            try_scales(tried, n_points + 1, trials, 0, STEPS * n_scales, group)
        choose_levels(trials, n_scales, STEPS, sub, n_groups, choices)
    return choose_scale(choices, n_scales, subs, WIDTH // size, block)
