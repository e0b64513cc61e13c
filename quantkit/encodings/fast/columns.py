"""GPTQ's inner loops on a processor: ranges tried on a group, and columns rounded in turn.

Matrices have a row per column of the weights, so that neighbours in memory are weights of one
column; all arrays are flat. Each call looks at the rows of weights from ``first`` to ``last``, a
multiple of ``LANES``, so many at a time: they are copied to where they lie together, for steps of
whole rows, often a power of two, would throw each other out of the cache.
"""

import numpy as np

from quantkit.encodings.fast.jit import compiled, inlined
from quantkit.encodings.fast.search import least, most, rounded
from quantkit.encodings.fast.simd import LANES, f32, load, negative, store


@inlined
def _gather(matrix, row, rows, columns, tile):
    for column in range(columns):
        store(tile, column * LANES, load(matrix, column * rows + row))


@compiled
def range_costs(weights, costs, inverses, zeros, top, first, last, out):
    """Sum the squared errors of a group's columns, in steps of the grid, for each range.

    ``weights`` is (columns, rows), ``inverses`` of the scales, ``zeros`` and ``out`` are (ranges,
    rows), ``costs`` is (columns).
    """
    columns = len(costs)
    rows = len(weights) // columns
    tile = np.empty(columns * LANES, np.float32)
    for row in range(first, last, LANES):
        _gather(weights, row, rows, columns, tile)
        for at in range(row, len(inverses), rows):
            inverse, zero = load(inverses, at), load(zeros, at)
            lowest, highest = negative(zero), f32(top) - zero
            total = f32(0) * inverse
            for column in range(columns):
                wanted = load(tile, column * LANES) * inverse
                off = rounded(most(least(wanted, highest), lowest)) - wanted
                total = total + off * off * f32(costs[column])
            store(out, at, total)


@compiled
def round_columns(moved, before, factor, group_of, scales, zeros, top, first, last, errors, levels):
    """Round columns in turn; each one's error moves those after it.

    ``moved``, ``before``, ``errors`` and ``levels`` are (columns, rows), ``factor`` is (columns,
    columns); ``group_of`` (columns) counts the rows of ``scales`` and ``zeros``.
    """
    columns = len(group_of)
    rows = len(moved) // columns
    tile = np.empty(columns * LANES, np.float32)
    for row in range(first, last, LANES):
        _gather(moved, row, rows, columns, tile)
        for i in range(columns):
            at = i * rows + row
            of_group = group_of[i] * rows + row
            scale, zero = load(scales, of_group), load(zeros, of_group)
            # Clipped first: only numbers that are not too large round like that.
            wanted = load(tile, i * LANES) / scale
            nearest = rounded(most(least(wanted, f32(top) - zero), negative(zero)))
            error = load(before, at) - nearest * scale
            store(errors, at, error)
            store(levels, at, nearest + zero)
            for j in range(i + 1, columns):
                share = f32(factor[i * columns + j])
                store(tile, j * LANES, load(tile, j * LANES) + error * share)
