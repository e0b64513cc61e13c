"""The grid points nearest to groups of weights, among those that may be.

Neighbouring candidate scales mostly put a group into the same half cell: they make a *run*, for
which the list is looked up once. Where the cell is a point itself, it is the answer for the whole
run. Elsewhere ``NARROW`` candidates of the run lie in lanes, and the points of the list are tried
one after another.

The error of a point is the sum of ``weight * (scale * q - x) ** 2``, element after element, as
``iq2_find_best_neighbour`` and ``iq3_find_best_neighbour`` of ``ggml/src/ggml-quants.c`` have it;
of equals the first wins.
"""

from collections import namedtuple

import numpy as np
from numpy import uintp

from quantkit.encodings.fast.grids import LENGTH_BITS, LONGEST, ON_GRID
from quantkit.encodings.fast.jit import compiled, inlined
from quantkit.encodings.fast.simd import (
    LANES,
    NARROW,
    i32,
    narrow_f32,
    narrow_gather,
    narrow_i32,
    narrow_load,
    narrow_store,
    select,
    store,
    transpose,
)

_FARTHEST = np.finfo(np.float32).max

# Working memory. In rows, one for each lane: ``keys``, ``points`` and ``scales`` of the candidates.
# Of each run: where it ``starts`` and ``ends`` in the rows, and its head in ``grids.Lists``. And
# two tables: ``order`` counts lanes, ``odd`` are the coordinates of levels.
Runs = namedtuple("Runs", "keys points scales starts ends heads order odd")


@inlined
def row_of(n):
    """How long the row of ``n`` candidates is."""
    return (n + NARROW - 1) // NARROW * NARROW


@inlined
def make_runs(n):
    """Room for ``n`` candidates of each lane."""
    size = LANES * row_of(n) + LANES
    return Runs(
        np.zeros(size, np.int32),
        np.zeros(size, np.int32),
        np.zeros(size, np.float32),
        np.zeros(size, np.uint32),
        np.zeros(size, np.uint32),
        np.zeros(size, np.uint32),
        np.arange(NARROW).astype(np.int32),
        np.arange(1, 2 * LANES, 2).astype(np.float32),
    )


@inlined
def to_rows(tile, n, rows):
    """Sort a tile of ``row_of(n)`` vectors into a row for each lane."""
    row = row_of(n)
    for lane in range(0, LANES, NARROW):
        for i in range(0, n, NARROW):
            transpose(tile, i * LANES + lane, LANES, rows, lane * row + i, row)


@inlined
def _to_tile(rows, n, tile):
    row = row_of(n)
    for lane in range(0, LANES, NARROW):
        for i in range(0, n, NARROW):
            transpose(rows, lane * row + i, row, tile, i * LANES + lane, LANES)


@inlined
def _split_runs(lists, n, runs):
    """Answer the runs on the grid; the others are first in the queue, and counted."""
    row = row_of(n)
    n_runs = uintp(0)
    for lane in range(uintp(LANES)):
        place = lane * uintp(row)
        former = np.int32(-1)
        for _ in range(n):
            key = runs.keys[place]
            runs.starts[n_runs] = place
            n_runs += uintp(key != former)
            former = key
            place += uintp(1)
            runs.ends[n_runs - uintp(1)] = place
    n_left = uintp(0)
    for k in range(n_runs):
        place, end = runs.starts[k], runs.ends[k]
        head = np.uint32(lists.heads[runs.keys[uintp(place)]])
        point = lists.codes[(head & np.uint32(ON_GRID - 1)) >> np.uint32(LENGTH_BITS)]
        # To the end of the row, and beyond: the runs behind it come later.
        store(runs.points, uintp(place), i32(np.int32(point) | np.int32(ON_GRID)))
        runs.starts[n_left], runs.ends[n_left], runs.heads[n_left] = place, end, head
        n_left += uintp(head < np.uint32(ON_GRID))
    return n_left


@inlined
def _answer(runs, place, end, found):
    """Set the points of a run from a place on, at most ``NARROW`` of them."""
    inside = narrow_load(runs.order, 0) < narrow_i32(np.int32(end) - np.int32(place))
    narrow_store(runs.points, place, select(inside, found, narrow_load(runs.points, place)))


@compiled
def find_points_of_four(lists, keys, n, x, weight, start, runs):
    """Replace the keys of groups by the codes of the points that are nearest, and ``ON_GRID``.

    Args:
        lists: of the grid.
        keys: ``row_of(n)`` vectors, ``n`` of which count: one for each candidate.
        n: how many candidates.
        x: a tile with the magnitudes.
        weight: a tile with what their errors count in this search.
        start: where in both the groups begin.
        runs: with the candidates' scales.

    """
    row = uintp(row_of(n))
    to_rows(keys, n, runs.keys)
    for k in range(_split_runs(lists, n, runs)):
        place, end = uintp(runs.starts[k]), uintp(runs.ends[k])
        first = uintp(start * LANES) + place // row
        begin = uintp(runs.heads[k] >> np.uint32(LENGTH_BITS))
        behind = begin + uintp(runs.heads[k] & np.uint32(LONGEST))
        while place < end:
            scale = narrow_load(runs.scales, place)
            best, winner = narrow_f32(_FARTHEST), narrow_i32(0)
            for j in range(begin, behind):
                code = uintp(lists.codes[j])
                error = narrow_f32(0)
                for i in range(4):
                    q = narrow_f32(runs.odd[(code >> uintp(4 * i + 1)) & uintp(7)])
                    off = scale * q - narrow_f32(x[first + uintp(i * LANES)])
                    square = narrow_f32(weight[first + uintp(i * LANES)]) * off * off
                    error = square if i == 0 else error + square
                better = error < best
                best = select(better, error, best)
                winner = select(better, narrow_i32(code), winner)
            _answer(runs, place, end, winner)
            place += uintp(NARROW)
    _to_tile(runs.points, n, keys)


@compiled
def find_points_of_eight(lists, keys, n, x, weight, start, runs):
    """``find_points_of_four`` for groups of eight."""
    row = uintp(row_of(n))
    terms = np.empty(4 * 8 * NARROW, np.float32)
    to_rows(keys, n, runs.keys)
    for k in range(_split_runs(lists, n, runs)):
        place, end = uintp(runs.starts[k]), uintp(runs.ends[k])
        first = uintp(start * LANES) + place // row
        begin = uintp(runs.heads[k] >> np.uint32(LENGTH_BITS))
        behind = begin + uintp(runs.heads[k] & np.uint32(LONGEST))
        while place < end:
            scale = narrow_load(runs.scales, place)
            for level in range(3):
                reached = narrow_f32(2 * level + 1) * scale
                for i in range(8):
                    off = reached - narrow_f32(x[first + uintp(i * LANES)])
                    square = narrow_f32(weight[first + uintp(i * LANES)]) * off * off
                    narrow_store(terms, (4 * i + level) * NARROW, square)
            best, winner = narrow_f32(_FARTHEST), narrow_i32(0)
            for j in range(begin, behind):
                code = uintp(lists.codes[j])
                error = narrow_load(terms, (code & uintp(3)) * uintp(NARROW))
                for i in range(1, 8):
                    term = uintp(4 * i) + ((code >> uintp(2 * i)) & uintp(3))
                    error = error + narrow_load(terms, term * uintp(NARROW))
                better = error < best
                best = select(better, error, best)
                winner = select(better, narrow_i32(code), winner)
            _answer(runs, place, end, winner)
            place += uintp(NARROW)
    _to_tile(runs.points, n, keys)


@inlined
def _queue_alone(lists, points, queue, heads):
    """Answer the lanes on the grid; the others are queued, and counted."""
    n_left = uintp(0)
    for lane in range(uintp(LANES)):
        head = np.uint32(lists.heads[uintp(points[lane])])
        point = lists.codes[(head & np.uint32(ON_GRID - 1)) >> np.uint32(LENGTH_BITS)]
        points[lane] = np.int32(point) | np.int32(ON_GRID)
        queue[n_left], heads[n_left] = lane, head
        n_left += uintp(head < np.uint32(ON_GRID))
    return n_left


@compiled
def find_point_of_four(lists, points, x, weight, start, runs):
    """``find_points_of_four`` for a single candidate, with its scales in ``runs.scales``."""
    for k in range(_queue_alone(lists, points, runs.starts, runs.heads)):
        lane = uintp(runs.starts[k])
        first = uintp(start * LANES) + lane
        begin = uintp(runs.heads[k] >> np.uint32(LENGTH_BITS))
        behind = begin + uintp(runs.heads[k] & np.uint32(LONGEST))
        scale, best, winner = runs.scales[lane], np.float32(_FARTHEST), np.int32(0)
        for j in range(begin, behind):
            code = uintp(lists.codes[j])
            error = np.float32(0)
            for i in range(4):
                off = scale * runs.odd[(code >> uintp(4 * i + 1)) & uintp(7)]
                off = off - x[first + uintp(i * LANES)]
                error = error + weight[first + uintp(i * LANES)] * off * off
            better = error < best
            best = error if better else best
            winner = np.int32(code) if better else winner
        points[lane] = winner


@compiled
def find_point_of_eight(lists, points, x, weight, start, runs):
    """``find_point_of_four`` for groups of eight.

    In ``runs.scales`` is what the three levels stand for, a vector each.
    """
    terms = np.empty(4 * 8, np.float32)
    for k in range(_queue_alone(lists, points, runs.starts, runs.heads)):
        lane = uintp(runs.starts[k])
        first = uintp(start * LANES) + lane
        begin = uintp(runs.heads[k] >> np.uint32(LENGTH_BITS))
        behind = begin + uintp(runs.heads[k] & np.uint32(LONGEST))
        xs = narrow_gather(x, first, LANES)
        weights = narrow_gather(weight, first, LANES)
        for level in range(3):
            off = narrow_f32(runs.scales[lane + uintp(level * LANES)]) - xs
            narrow_store(terms, level * NARROW, weights * off * off)
        best, winner = np.float32(_FARTHEST), np.int32(0)
        for j in range(begin, behind):
            code = uintp(lists.codes[j])
            error = terms[(code & uintp(3)) * uintp(8)]
            for i in range(1, 8):
                error = error + terms[((code >> uintp(2 * i)) & uintp(3)) * uintp(8) + uintp(i)]
            better = error < best
            best = error if better else best
            winner = np.int32(code) if better else winner
        points[lane] = winner


@compiled
def number_points(lists, chosen, n):
    """Replace the codes of ``n`` vectors by the numbers of their points."""
    for place in range(n * LANES):
        chosen[place] = lists.numbers[chosen[place] & 0xFFFF]
