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

from quantkit.encodings.fast.best_grids import LESS, load_block, store_block, weigh_block, widen
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
_CENTRE_BIT = 16
_BELOW = 1 << _CENTRE_BIT  # beside the code of a point: its centre is below 0
_TURNS = 3
_ENOUGH = 0.98  # of ggml's error: beyond, a scale is not made larger

# As in ``grid_turn``; ``signs`` are those of centres.
Block = namedtuple("Block", "weight product codes signs levels")


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
def _join_centres(block):
    """Put the centres, which lie apart in the format, beside the codes."""
    groups_per_centre = len(block.codes) // len(block.signs)
    for k in range(len(block.codes)):
        below = load(block.signs[k // groups_per_centre], 0) << i32(_CENTRE_BIT)
        store(block.codes[k], 0, load(block.codes[k], 0) | below)


@inlined
def _split_centres(block):
    """Undo `_join_centres`."""
    groups_per_centre = len(block.codes) // len(block.signs)
    for k in range(len(block.codes)):
        code = load(block.codes[k], 0)
        store(block.signs[k // groups_per_centre], 0, code >> i32(_CENTRE_BIT))
        store(block.codes[k], 0, code & i32(_BELOW - 1))


@inlined
def _improve(tiles, importance, near, parts, subs, shared):
    columns, weight, product = np.empty((3, WIDTH * LANES), np.float32)
    codes = np.empty((WIDTH // _SIZE, LANES), np.int32)
    signs = np.empty((parts.signs.shape[1], LANES), np.int32)
    block = Block(weight, product, codes, signs, np.empty((subs, LANES), np.float32))
    room = make_room(_SIZE, 2 * (EIGHTS_TRIED + 1), subs, 2 * STEPS)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        squares = weigh_block(x, importance, group, 2.0, columns, weight)
        for i in range(WIDTH):
            store(product, i * LANES, load(weight, i * LANES) * load(x, i * LANES))
        bits = load_block(parts, near.points, group * LANES, block)
        _join_centres(block)
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
        _split_centres(block)
        store_block(parts, near.numbers, group * LANES, block, bits, better)


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
