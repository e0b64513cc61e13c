"""``--search best`` for IQ1_S and IQ1_M: from ggml's blocks to ones with less error.

ggml splits the sorted weights of a sub-block into three levels around one of two centres, as well
as real scales allow, and only then looks for points of the grid, rounds the scales and multiplies
them by constants (1.125 and 1.1125). Here points, centres and multiples are chosen together and
for the weights as they will be decoded, as ``best_grids`` does it: what differs is that weights
keep their signs, and that a sub-block (IQ1_S) or a group (IQ1_M) has a centre.
"""

from collections import namedtuple

import numpy as np
from numpy.typing import NDArray

from quantkit.encodings.fast.best_grids import LESS, weigh_block, widen
from quantkit.encodings.fast.grid_blocks import put_together, take_apart
from quantkit.encodings.fast.grid_turn import (
    SCALES,
    STEPS,
    WIDTH,
    choose_levels,
    choose_scale,
    list_scales,
    list_trials,
    make_room,
    try_scales,
)
from quantkit.encodings.fast.halves import INFINITE, half_bits, half_value
from quantkit.encodings.fast.jit import compiled, inlined
from quantkit.encodings.fast.near_points import EIGHTS_TRIED, near_points
from quantkit.encodings.fast.simd import LANES, f32, i32, load, select, store
from quantkit.encodings.fast.thirds import centre_of, value_of

FORMATS = ("IQ1_S", "IQ1_M")
_SIZE = 8  # of a group
_TOP_LEVEL = 7
_BELOW = 1 << 16  # beside the code of a point: its centre is below 0
_TURNS = 3
_ENOUGH = 0.98  # of ggml's error: beyond, a scale is not made larger

# As in ``grid_turn``, without signs.
Block = namedtuple("Block", "weight product codes levels")


@inlined
def _centre(code):
    return centre_of((code & i32(_BELOW)) == i32(0))


@inlined
def _error_of(x, block, subs, d):
    """The error of the block as it is decoded."""
    n_groups = WIDTH // subs // _SIZE
    total = f32(0)
    for sub in range(subs):
        scale = d * (f32(2) * load(block.levels[sub], 0) + f32(1))
        part = f32(0)
        for group in range(sub * n_groups, (sub + 1) * n_groups):
            code = load(block.codes[group], 0)
            centre = _centre(code)
            for i in range(_SIZE):
                at = (group * _SIZE + i) * LANES
                off = scale * value_of(code, i, centre) - load(x, at)
                part = part + load(block.weight, at) * off * off
        total = total + part
    return total


@inlined
def _find_places(x, start, scale, centre, keys):
    """The keys of a group, for ``near_points``."""
    key = i32(0)
    middle, half = scale * centre, f32(0.5) * scale
    for i in range(_SIZE):
        value = load(x, (start + i) * LANES)
        place = select(value > middle - half, i32(1 << 2 * i), i32(0))
        place = select(value > middle, i32(2 << 2 * i), place)
        key = key | select(value > middle + half, i32(3 << 2 * i), place)
    store(keys, 0, key)


@inlined
def _take_points(near, keys, present, below, first, codes):
    """The present point of each lane and those of its place, all around one centre."""
    for lane in range(LANES):
        codes[first * LANES + lane] = (present[lane] & (_BELOW - 1)) | below
        place = keys[lane] * EIGHTS_TRIED
        for k in range(EIGHTS_TRIED):
            codes[(first + k + 1) * LANES + lane] = np.int32(near[place + k]) | below


@inlined
def _sum_points(block, start, first, tried):
    """The sums of each point that is tried."""
    for k in range(first, first + EIGHTS_TRIED + 1):
        code = load(tried.codes, k * LANES)
        centre = _centre(code)
        linear, square = f32(0), f32(0)
        for i in range(_SIZE):
            q, at = value_of(code, i, centre), (start + i) * LANES
            linear = linear + load(block.product, at) * q
            square = square + load(block.weight, at) * q * q
        store(tried.linear, k * LANES, linear + linear)
        store(tried.square, k * LANES, square)


@inlined
def _take_turn(x, block, near, subs, shared, d, n_scales, room):
    """Put better multiples, centres and points into the block; as ``grid_turn.take_turn``.

    ``shared``: whether the groups of a sub-block have one centre.
    """
    tried, trials, choices = room.tried, room.trials, room.choices
    width = WIDTH // subs
    n_groups = width // _SIZE
    n_points = EIGHTS_TRIED + 1
    ways = 2 * STEPS if shared else STEPS
    list_scales(d, n_scales, choices)
    for sub in range(subs):
        level = load(block.levels[sub], 0)
        scale = d * (f32(2) * level + f32(1))
        list_trials(level, _TOP_LEVEL, choices.scales, n_scales, ways, trials)
        for group in range(n_groups):
            start = sub * width + group * _SIZE
            present = block.codes[sub * n_groups + group]
            for below in range(2):
                first = 0 if shared else below * n_points
                _find_places(x, start, scale, centre_of(i32(below) == i32(0)), tried.keys)
                _take_points(near, tried.keys, present, below * _BELOW, first, tried.codes)
                _sum_points(block, start, first, tried)
                if shared:
                    for k in range(n_scales):
                        at = ways * k + below * STEPS
                        try_scales(tried, n_points, trials, at, STEPS, group)
            if not shared:
                try_scales(tried, 2 * n_points, trials, 0, ways * n_scales, group)
        choose_levels(trials, n_scales, ways, sub, n_groups, choices)
    return choose_scale(choices, n_scales, subs, WIDTH // _SIZE, block)


@inlined
def _load_block(parts, points, first, block):
    """Take over ggml's solution for the blocks from ``first`` on; the bits of their scales."""
    bits = np.empty(LANES, np.int32)
    groups_per_centre = parts.numbers.shape[1] // parts.signs.shape[1]
    for lane in range(LANES):
        i = min(first + lane, parts.scales.size - 1)
        bits[lane] = parts.scales[i]
        for k in range(parts.levels.shape[1]):
            block.levels[k, lane] = parts.levels[i, k]
        for k in range(parts.numbers.shape[1]):
            below = np.int32(parts.signs[i, k // groups_per_centre])
            block.codes[k, lane] = points[parts.numbers[i, k]] | (below * _BELOW)
    return load(bits, 0)


@inlined
def _store_block(parts, numbers, first, block, bits, better):
    """The solution for those blocks where it is better."""
    new, wanted = np.empty((2, LANES), np.int32)
    store(new, 0, bits)
    store(wanted, 0, select(better, i32(1), i32(0)))
    groups_per_centre = parts.numbers.shape[1] // parts.signs.shape[1]
    for lane in range(min(LANES, parts.scales.size - first)):
        if not wanted[lane]:
            continue
        i = first + lane
        parts.scales[i] = new[lane]
        for k in range(parts.levels.shape[1]):
            parts.levels[i, k] = block.levels[k, lane]
        for k in range(parts.numbers.shape[1]):
            code = block.codes[k, lane]
            parts.numbers[i, k] = numbers[code & (_BELOW - 1)]
            parts.signs[i, k // groups_per_centre] = code // _BELOW


@inlined
def _improve(tiles, importance, near, parts, subs, shared):
    columns, weight, product = np.empty((3, WIDTH * LANES), np.float32)
    codes = np.empty((WIDTH // _SIZE, LANES), np.int32)
    block = Block(weight, product, codes, np.empty((subs, LANES), np.float32))
    room = make_room(_SIZE, 2 * (EIGHTS_TRIED + 1), subs, 2 * STEPS)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        squares = weigh_block(x, importance, group, 2.0, columns, weight)
        for i in range(WIDTH):
            store(product, i * LANES, load(weight, i * LANES) * load(x, i * LANES))
        bits = _load_block(parts, near.points, group * LANES, block)
        d = half_value(bits)
        before = _error_of(x, block, subs, d)
        for turn in range(_TURNS):
            n_scales = len(SCALES) if turn == 0 else 1
            qx, q2 = _take_turn(x, block, near.codes, subs, shared, d, n_scales, room)
            fitted = qx / q2
            if turn == _TURNS - 1:
                fitted = widen(fitted, qx, q2, squares, before * f32(_ENOUGH))
            bits = half_bits(select((qx > f32(0)) & (q2 > f32(0)), fitted, d))
            d = half_value(bits)
        after = _error_of(x, block, subs, d)
        better = (after < before * f32(LESS)) & (bits < i32(INFINITE))
        _store_block(parts, near.numbers, group * LANES, block, bits, better)


@compiled
def _improve_s(tiles, importance, near, parts):
    _improve(tiles, importance, near, parts, 8, True)


@compiled
def _improve_m(tiles, importance, near, parts):
    _improve(tiles, importance, near, parts, 16, False)


def improve(
    tiles: NDArray[np.float32],
    importance: NDArray[np.float32],
    name: str,
    out: NDArray[np.uint8],
) -> None:
    """Less error for the blocks of a format, wherever it can be had.

    Args:
        tiles: the weights, from ``make_tiles``, 256 to a block.
        importance: one weight per column.
        name: of the format, one of ``FORMATS``.
        out: ggml's blocks, shape (blocks, bytes); the better ones afterwards.

    """
    near, parts = near_points(name), take_apart(out, name)
    kernel = _improve_s if name == "IQ1_S" else _improve_m
    kernel(tiles, importance, near, parts)
    put_together(out, name, parts)
