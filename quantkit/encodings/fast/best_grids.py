"""``--search best`` for the i-quants on grids: from ggml's blocks to ones with less error.

ggml searches the scale of each sub-block as a real number, with coordinates that are odd numbers,
and rounds the scales afterwards; what a block stands for has other coordinates (the 3 of IQ2 is
decoded as 3.125) and scales that are multiples of the block's. Here every sum is over the weights
as they will be decoded. For each group of weights a few points are tried (see ``near_points``), and
the sums by which the error of a point is a parabola of the scale are made once: then many scales
cost little more than one. So a turn tries

- for the block some scales, for each of them
- for each sub-block three multiples, for each of these
- for each group the points that may be nearest and the present one,

takes the best of all, and fits the block's scale to it by least squares. Where the number of
negative signs must be even, the weight that gets the wrong sign is chosen anew before each turn.

Least squares shrink: where a twentieth of the squares is lost, decoded weights are a twentieth
closer to 0 than theirs, all of them, which adds up in a product while other errors do not. So in
the end the scale is made a little larger, until the block's weighted product with the weights
themselves is what it should be, or the error nearly ggml's. (At that place ggml multiplies by
constants: 1.033 for IQ3_S.)

What comes out replaces ggml's block only where the error is less, each summed term by term. All
products of scale, multiple and coordinate are exact in float32.

Without importance blocks stay as they are. ggml's measure for IQ3 is then the weight squared: one
that is ten times as large counts a hundred times. Taken at its word, it spoils the others.
"""

from collections import namedtuple

import numpy as np
from numpy.typing import NDArray

from quantkit.encodings.fast.grid_blocks import put_together, take_apart
from quantkit.encodings.fast.grid_turn import (
    SCALES,
    STEPS,
    WIDTH,
    Block,
    coordinate,
    make_room,
    take_turn,
)
from quantkit.encodings.fast.halves import INFINITE, half_bits, half_value
from quantkit.encodings.fast.jit import compiled, inlined
from quantkit.encodings.fast.near_points import EIGHTS_TRIED, FOURS_TRIED, near_points
from quantkit.encodings.fast.search import least, most
from quantkit.encodings.fast.simd import (
    LANES,
    f32,
    i32,
    load,
    negative,
    select,
    sqrt,
    store,
)
from quantkit.encodings.fast.tiles import importance_tile
from quantkit.encodings.fast.weighing import sum_of_squares, weigh

_TURNS = 3
_ENOUGH = 0.97  # of ggml's error: beyond, a scale is not made larger
LESS = 1 - 2.0**-15  # beyond what rounding of the sums can make of two equal errors
_MOST = 3.4028234663852886e38

# ``size``: weights per group; ``subs``: sub-blocks; ``even``: whether signs are; ``mean``: how many
# mean squares are in the measure of the error; ``top``: what the highest of eight levels means.
Format = namedtuple("Format", "size subs even mean top")
FORMATS = {
    "IQ3_S": Format(4, 8, False, 2.0, 15.0),
    "IQ3_XXS": Format(4, 8, True, 2.0, 15.5),
    "IQ2_S": Format(8, 16, False, 2.0, 0.0),
    "IQ2_XS": Format(8, 16, True, 1.0, 0.0),
    "IQ2_XXS": Format(8, 8, True, 1.0, 0.0),
}


@inlined
def _apply_signs(x, eight, signs, block):
    """The weights of an eight, signed so that they should be positive."""
    store(block.signs[eight], 0, signs)
    for i in range(8):
        at = (8 * eight + i) * LANES
        value = load(x, at)
        value = select((signs & i32(1 << i)) != i32(0), negative(value), value)
        store(block.x, at, value)
        store(block.product, at, load(block.weight, at) * value)


@inlined
def _choose_signs(x, size, top, even, block):
    """Each weight's own sign; where their number is odd, one that costs least with its points."""
    for eight in range(WIDTH // 8):
        signs, flips, which = i32(0), i32(0), i32(0)
        cheapest = f32(_MOST)
        for i in range(8):
            at = (8 * eight + i) * LANES
            value = load(x, at)
            below = value < f32(0)
            signs = signs | select(below, i32(1 << i), i32(0))
            if even:
                flips = flips + select(below, i32(1), i32(0))
                group, place = (eight, i) if size == 8 else (2 * eight + i // 4, i % 4)
                q = coordinate(load(block.codes[group], 0), place, size, top)
                cost = load(block.weight, at) * select(below, negative(value), value) * q
                cheaper = cost < cheapest
                cheapest = select(cheaper, cost, cheapest)
                which = select(cheaper, i32(1 << i), which)
        if even:
            odd = (flips & i32(1)) == i32(1)
            other = (signs | which) - (signs & which)
            signs = select(odd, other, signs)
        _apply_signs(x, eight, signs, block)


@inlined
def _error_of(block, size, subs, top, d):
    """The error of the block as it is decoded."""
    groups_per_sub = WIDTH // subs // size
    total = f32(0)
    for sub in range(subs):
        scale = d * (f32(2) * load(block.levels[sub], 0) + f32(1))
        part = f32(0)
        for k in range(groups_per_sub):
            group = sub * groups_per_sub + k
            code = load(block.codes[group], 0)
            for i in range(size):
                at = (group * size + i) * LANES
                off = scale * coordinate(code, i, size, top) - load(block.x, at)
                part = part + load(block.weight, at) * off * off
        total = total + part
    return total


@inlined
def weigh_block(x, importance, group, mean, columns, weight):
    """What the errors of a block's weights count; the sum of their weighted squares."""
    importance_tile(importance, group, WIDTH, columns)
    weigh(x, 0, WIDTH, f32(mean) * sum_of_squares(x, 0, WIDTH) / f32(WIDTH), columns, weight)
    total = f32(0)
    for i in range(WIDTH):
        value = load(x, i * LANES)
        total = total + load(weight, i * LANES) * value * value
    return total


@inlined
def widen(fitted, product, own, squares, most_error):
    """The scale that does not shrink, or that between it and ``fitted`` with ``most_error``."""
    spare = most_error - (squares - fitted * product)
    farthest = fitted + sqrt(most(spare, f32(0)) / own)
    return least(squares / product, farthest)


@inlined
def load_block(parts, points, first, block):
    """Take over ggml's solution for the blocks from ``first`` on; the bits of their scales."""
    bits = np.empty(LANES, np.int32)
    for lane in range(LANES):
        i = min(first + lane, parts.scales.size - 1)
        bits[lane] = parts.scales[i]
        for k in range(parts.levels.shape[1]):
            block.levels[k, lane] = parts.levels[i, k]
        for k in range(parts.numbers.shape[1]):
            block.codes[k, lane] = points[parts.numbers[i, k]]
        for k in range(parts.signs.shape[1]):
            block.signs[k, lane] = parts.signs[i, k]
    return load(bits, 0)


@inlined
def store_block(parts, numbers, first, block, bits, better):
    """The solution for those blocks where it is better."""
    new, wanted = np.empty((2, LANES), np.int32)
    store(new, 0, bits)
    store(wanted, 0, select(better, i32(1), i32(0)))
    for lane in range(min(LANES, parts.scales.size - first)):
        if not wanted[lane]:
            continue
        i = first + lane
        parts.scales[i] = new[lane]
        for k in range(parts.levels.shape[1]):
            parts.levels[i, k] = block.levels[k, lane]
        for k in range(parts.numbers.shape[1]):
            parts.numbers[i, k] = numbers[block.codes[k, lane]]
        for k in range(parts.signs.shape[1]):
            parts.signs[i, k] = block.signs[k, lane]


@inlined
def _improve(tiles, importance, near, parts, size, n_points, subs, even, mean, top):
    per_weight = np.empty((4, WIDTH * LANES), np.float32)
    columns = per_weight[3]
    block = Block(
        per_weight[0],
        per_weight[1],
        per_weight[2],
        np.empty((WIDTH // size, LANES), np.int32),
        np.empty((WIDTH // 8, LANES), np.int32),
        np.empty((subs, LANES), np.float32),
    )
    room = make_room(size, n_points + 1, subs, STEPS)
    top_level = f32(top)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        squares = weigh_block(x, importance, group, mean, columns, block.weight)
        bits = load_block(parts, near.points, group * LANES, block)
        d = half_value(bits)
        for eight in range(WIDTH // 8):
            _apply_signs(x, eight, load(block.signs[eight], 0), block)
        before = _error_of(block, size, subs, top_level, d)
        for turn in range(_TURNS):
            if turn == 0 or even:
                _choose_signs(x, size, top_level, even, block)
            n_scales = len(SCALES) if turn == 0 else 1
            product, own = take_turn(
                block, near.codes, size, n_points, subs, top_level, d, n_scales, room
            )
            fitted = product / own
            if turn == _TURNS - 1:
                fitted = widen(fitted, product, own, squares, before * f32(_ENOUGH))
            bits = half_bits(select((product > f32(0)) & (own > f32(0)), fitted, d))
            d = half_value(bits)
        after = _error_of(block, size, subs, top_level, d)
        better = (after < before * f32(LESS)) & (bits < i32(INFINITE))
        store_block(parts, near.numbers, group * LANES, block, bits, better)


@compiled
def _improve_fours(tiles, importance, near, parts, even, mean, top):
    _improve(tiles, importance, near, parts, 4, FOURS_TRIED, 8, even, mean, top)


@compiled
def _improve_eights(tiles, importance, near, parts, even, mean, subs):
    _improve(tiles, importance, near, parts, 8, EIGHTS_TRIED, subs, even, mean, 0.0)


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
        name: of the format, a key of ``FORMATS``.
        out: ggml's blocks, shape (blocks, bytes); the better ones afterwards.

    """
    kind, near = FORMATS[name], near_points(name)
    parts = take_apart(out, name)
    common = tiles, importance, near, parts, kind.even, kind.mean
    if kind.size == 4:
        _improve_fours(*common, kind.top)
    else:
        _improve_eights(*common, kind.subs)
    put_together(out, name, parts)
