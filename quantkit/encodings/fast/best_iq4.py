"""``--search best`` for IQ4_NL and IQ4_XS: from ggml's blocks to ones with less error.

The table of levels reaches from -127 to 113. ggml tries a few scales with which the farthest weight
comes to one end of it, -127; as often as not the other end serves better, or one further in, which
leaves the farthest weight to be cut off. Here both are tried, and more of them.

IQ4_XS rounds its scales to multiples of the block's. ggml takes the farthest for -32 times that and
leaves it there. Here the block's scale is tried with several multiples for the farthest, each time
with the multiples around what either end of the table wants, and then fitted by least squares.

As in ``best_grids``: the scale is made larger in the end, because least squares shrink; the error
is that of the weights as they will be decoded; a block is replaced only where it is less; and
without importance blocks stay as they are.
"""

import numpy as np
from numpy.typing import NDArray

from quantkit.encodings.fast.best_grids import LESS, weigh_block, widen
from quantkit.encodings.fast.halves import INFINITE, half_bits, half_value
from quantkit.encodings.fast.iq4 import (
    BLOCK,
    VALUES,
    inverse_of,
    nearest_index,
    nearest_value,
    products,
)
from quantkit.encodings.fast.jit import compiled, inlined
from quantkit.encodings.fast.search import farthest, level_between, most
from quantkit.encodings.fast.simd import LANES, absolute, f32, i32, load, select, store
from quantkit.encodings.fast.tiles import importance_tile
from quantkit.encodings.fast.weighing import sum_of_squares, weigh

WIDTH = 256
_SUBS = WIDTH // BLOCK
# To what the farthest weight comes, one end of the table after the other.
_ENDS = np.array(
    [[-148, -140, -133, -127, -121, -115, -108], [132, 125, 119, 113, 107, 101, 95]], np.float32
)
_REFITS = 2
_SHARES = np.array([31.2, 30.4, 29.5, 28.6, 27.6, 26.5], np.float32)  # of the farthest scale
_TURNS = len(_SHARES) + 2
_ENOUGH = 0.995  # of ggml's error: a scale that does not shrink adds a two-hundredth at most
_MOST = 3.4028234663852886e38

FORMATS = ("IQ4_NL", "IQ4_XS")


@inlined
def _search_end(x, start, weight, far, ends):
    """The best scale with the farthest weight near one end, and the error that it takes away."""
    zero = f32(0)
    scale, best = zero, zero
    for k in range(len(ends) + _REFITS):
        inverse = f32(ends[k]) / far if k < len(ends) else inverse_of(scale)
        sum_qx, sum_q2 = products(x, start, weight, inverse)
        better = (sum_q2 > zero) & (sum_qx * sum_qx > best * sum_q2)
        scale = select(better, sum_qx / sum_q2, scale)
        best = select(better, scale * sum_qx, best)
    return scale, best


@inlined
def _error_of(x, start, weight, scale, values):
    """The error of a sub-block as it is decoded."""
    error = f32(0)
    for i in range(BLOCK):
        off = scale * load(values, i * LANES) - load(x, (start + i) * LANES)
        error = error + load(weight, i * LANES) * off * off
    return error


@inlined
def _round(x, start, scale, indices, values):
    """The nearest levels with a scale: their indices and values."""
    inverse = inverse_of(scale)
    for i in range(BLOCK):
        y = inverse * load(x, (start + i) * LANES)
        store(indices, i * LANES, nearest_index(y))
        store(values, i * LANES, nearest_value(y))


@inlined
def _read_values(block, first, values, lane):
    """What the nibbles of a block of bytes stand for."""
    for i in range(BLOCK // 2):
        byte = block[first + i]
        values[i * LANES + lane] = VALUES[byte & 15]
        values[(i + BLOCK // 2) * LANES + lane] = VALUES[byte >> 4]


@inlined
def _write_indices(block, first, indices, lane):
    for i in range(BLOCK // 2):
        high = indices[(i + BLOCK // 2) * LANES + lane]
        block[first + i] = indices[i * LANES + lane] | (high << 4)


@compiled
def _improve_nl(tiles, importance, out):
    width = tiles.shape[1] // LANES
    per_tile = width // BLOCK
    columns = np.empty(width * LANES, np.float32)
    weight, values = np.empty((2, BLOCK * LANES), np.float32)
    indices = np.empty(BLOCK * LANES, np.int32)
    bits, wanted = np.empty((2, LANES), np.int32)
    zero = f32(0)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        importance_tile(importance, group, width, columns)
        n_lanes = min(LANES, len(out) // per_tile - group * LANES)
        for block in range(per_tile):
            start, first = BLOCK * block, group * LANES * per_tile + block
            sigma2 = f32(2) * sum_of_squares(x, start, BLOCK) / f32(BLOCK)
            weigh(x, start, BLOCK, sigma2, columns, weight)
            for lane in range(LANES):
                data = out[first + min(lane, n_lanes - 1) * per_tile]
                bits[lane] = np.int32(data[0]) | (np.int32(data[1]) << 8)
                _read_values(data, 2, values, lane)
            before = _error_of(x, start, weight, half_value(load(bits, 0)), values)
            far, _ = farthest(x, start, BLOCK)
            scale, best = _search_end(x, start, weight, far, _ENDS[0])
            other, other_best = _search_end(x, start, weight, far, _ENDS[1])
            scale = select(other_best > best, other, scale)
            squares = zero
            for i in range(BLOCK):
                value = load(x, (start + i) * LANES)
                squares = squares + load(weight, i * LANES) * value * value
            product, own = products(x, start, weight, inverse_of(scale))
            scale = widen(product / own, product, own, squares, before * f32(_ENOUGH))
            new = half_bits(scale)
            scale = half_value(new)
            _round(x, start, scale, indices, values)
            after = _error_of(x, start, weight, scale, values)
            finite = (new & i32(INFINITE)) != i32(INFINITE)
            better = (after < before * f32(LESS)) & finite
            store(bits, 0, new)
            store(wanted, 0, select(better, i32(1), i32(0)))
            for lane in range(n_lanes):
                if wanted[lane]:
                    data = out[first + lane * per_tile]
                    data[0], data[1] = bits[lane] & 255, bits[lane] >> 8
                    _write_indices(data, 2, indices, lane)


@inlined
def _choose_multiples(x, weight, d, ends, multiples):
    """Multiples of a scale of the block, around what the ends of the table want.

    Returns:
        the error less the weighted squares of the weights, and the sums that the scale is fitted
        by: weighted products of decoded and weight, and of decoded and decoded, with a scale of 1.

    """
    total, product, own = f32(0), f32(0), f32(0)
    inverse = inverse_of(d)
    for sub in range(_SUBS):
        best, best_multiple, best_qx, best_q2 = f32(_MOST), f32(0), f32(0), f32(0)
        for step in range(6):
            wanted = inverse * load(ends[step // 3], sub * LANES)
            wanted = wanted + f32(np.float32(step % 3 - 1))
            multiple = level_between(wanted, f32(-32), f32(31))
            scale = d * multiple
            sum_qx, sum_q2 = products(x, BLOCK * sub, weight[sub], inverse_of(scale))
            error = (sum_q2 * scale - sum_qx - sum_qx) * scale
            better = error < best
            best = select(better, error, best)
            best_multiple = select(better, multiple, best_multiple)
            best_qx = select(better, sum_qx, best_qx)
            best_q2 = select(better, sum_q2, best_q2)
        store(multiples, sub * LANES, best_multiple)
        total = total + best
        product = product + best_multiple * best_qx
        own = own + best_multiple * best_multiple * best_q2
    return total, product, own


@inlined
def _read_xs(out, first, bits, multiples, values):
    """Take over the blocks from ``first`` on: bits of scales, multiples, values."""
    for lane in range(LANES):
        data = out[min(first + lane, len(out) - 1)]
        bits[lane] = np.int32(data[0]) | (np.int32(data[1]) << 8)
        for sub in range(_SUBS):
            low = (data[4 + sub // 2] >> (4 * (sub % 2))) & 15
            high = (data[2 + sub // 4] >> (2 * (sub % 4))) & 3
            multiples[sub * LANES + lane] = np.float32(np.int32(low | (high << 4)) - 32)
            _read_values(data, 8 + 16 * sub, values[sub], lane)


@inlined
def _write_xs(data, lane, bits, multiples, indices):
    data[0], data[1] = bits[lane] & 255, bits[lane] >> 8
    for k in range(2, 8):
        data[k] = 0
    for sub in range(_SUBS):
        stored = np.int32(multiples[sub * LANES + lane]) + 32
        data[4 + sub // 2] |= (stored & 15) << (4 * (sub % 2))
        data[2 + sub // 4] |= (stored >> 4) << (2 * (sub % 4))
        _write_indices(data, 8 + 16 * sub, indices[sub], lane)


@compiled
def _improve_xs(tiles, importance, out):
    columns, all_weights = np.empty(WIDTH * LANES, np.float32), np.empty(WIDTH * LANES, np.float32)
    weight = all_weights.reshape(_SUBS, BLOCK * LANES)
    values = np.empty((_SUBS, BLOCK * LANES), np.float32)
    indices = np.empty((_SUBS, BLOCK * LANES), np.int32)
    chosen, multiples = np.empty((2, _SUBS * LANES), np.float32)
    ends = np.empty((2, _SUBS * LANES), np.float32)
    bits, wanted = np.empty((2, LANES), np.int32)
    zero = f32(0)
    for group in range(tiles.shape[0]):
        x = tiles[group]
        squares = weigh_block(x, importance, group, 2, columns, all_weights)
        _read_xs(out, group * LANES, bits, chosen, values)
        d = half_value(load(bits, 0))
        before, greatest = zero, zero
        for sub in range(_SUBS):
            scale = d * load(chosen, sub * LANES)
            before = before + _error_of(x, BLOCK * sub, weight[sub], scale, values[sub])
            far, _ = farthest(x, BLOCK * sub, BLOCK)
            most_won, best = zero, zero
            for end in range(2):
                scale, won = _search_end(x, BLOCK * sub, weight[sub], far, _ENDS[end])
                store(ends[end], sub * LANES, scale)
                best = select(won > most_won, scale, best)
                most_won = most(won, most_won)
            greatest = most(absolute(best), greatest)
        least_error, product, own = f32(_MOST), zero, zero
        for turn in range(_TURNS):
            trial = product / own
            if turn < len(_SHARES):
                trial = greatest / f32(_SHARES[turn])
            error, qx, q2 = _choose_multiples(
                x, weight, half_value(half_bits(trial)), ends, multiples
            )
            better = (error < least_error) & (q2 > zero)
            least_error = select(better, error, least_error)
            product, own = select(better, qx, product), select(better, q2, own)
            for sub in range(_SUBS):
                at = sub * LANES
                store(chosen, at, select(better, load(multiples, at), load(chosen, at)))
        fitted = widen(product / own, product, own, squares, before * f32(_ENOUGH))
        new = half_bits(fitted)
        d = half_value(new)
        after = zero
        for sub in range(_SUBS):
            scale = d * load(chosen, sub * LANES)
            _round(x, BLOCK * sub, scale, indices[sub], values[sub])
            after = after + _error_of(x, BLOCK * sub, weight[sub], scale, values[sub])
        better = (after < before * f32(LESS)) & ((new & i32(INFINITE)) != i32(INFINITE))
        store(bits, 0, new)
        store(wanted, 0, select(better, i32(1), i32(0)))
        for lane in range(min(LANES, len(out) - group * LANES)):
            if wanted[lane]:
                _write_xs(out[group * LANES + lane], lane, bits, chosen, indices)


def improve(
    tiles: NDArray[np.float32],
    importance: NDArray[np.float32],
    name: str,
    out: NDArray[np.uint8],
) -> None:
    """Less error for the blocks of a format, wherever it can be had.

    Args:
        tiles: the weights, from ``make_tiles``; of IQ4_XS 256 to a block.
        importance: one weight per column.
        name: of the format, one of ``FORMATS``.
        out: ggml's blocks; the better ones afterwards.

    """
    if name == "IQ4_NL":
        _improve_nl(tiles, importance, out.reshape(-1, 18))
    else:
        _improve_xs(tiles, importance, out.reshape(-1, 136))
