"""For every place between the points of a grid the few points that are worth a try there.

``grids.Lists`` has the points that ggml would try, and no others. The search ``best`` is free to
take any, and tries the same number in every lane. So here each place has equally many: from those
nearest to its middle, without such as are nowhere nearer than another of them, since these lose
whatever the weights.

A place says for each coordinate in which order the levels follow by distance. Between the middles
of two neighbouring pairs of levels that order does not change.
"""

from collections import namedtuple
from functools import cache

import numpy as np
from numpy.typing import NDArray

from quantkit.encodings.fast.grids import read_grid
from quantkit.encodings.fast.jit import compiled

FOURS_TRIED, EIGHTS_TRIED = 8, 16  # points per place, by the size of a group
_SORTED = 48  # nearest points, of which those are taken
_PARTS = 64  # of a level: distances are whole numbers

# ``codes``: so many for each key, by their coordinates: four bits each of four (1, 3 ... 15), or
# two bits for the level of each of eight. ``numbers[code]``: which point of the grid that is;
# ``points[number]``: its code.
NearPoints = namedtuple("NearPoints", "codes numbers points")


@cache
def near_points(name: str) -> NearPoints:
    """The points to try in the grid of a format.

    The key of a place has ``16 // size`` bits for each coordinate, the first in the lowest.
    """
    if name == "IQ1_M":
        return near_points("IQ1_S")
    grid = read_grid(name)
    size = grid.shape[1]
    bits = 16 // size
    if size == 4:
        levels, edges = np.arange(1, 16, 2), np.arange(2, 15)
        points = ((2 * grid + 1).astype(np.int64) << np.arange(0, 16, 4)).sum(-1)
    else:
        levels, edges = np.arange(1, 6, 2), np.arange(2, 5)
        points = (grid.astype(np.int64) << np.arange(0, 16, 2)).sum(-1)
    middles = np.concatenate([[1.25], edges[:-1] + 0.5, [edges[-1] + 0.75]])
    squares = np.rint(_PARTS * np.subtract.outer(middles, levels) ** 2).astype(np.int64)
    numbers = np.zeros(1 << 16, np.uint16)
    numbers[points] = np.arange(len(grid))
    halves = (grid[:, : size // 2], grid[:, size // 2 :])
    low, high = (_distances(half, squares, bits) for half in halves)
    points = points.astype(np.uint16)
    codes = _pick(low, high, grid, squares, points, FOURS_TRIED if size == 4 else EIGHTS_TRIED)
    return NearPoints(codes.reshape(-1), numbers, points)


def _distances(grid: NDArray[np.uint8], squares: NDArray[np.int64], bits: int) -> NDArray[np.int32]:
    """Squares for half of a point's coordinates, shape (keys of that half, points)."""
    keys = np.arange(1 << bits * grid.shape[1])
    total = np.zeros((len(keys), len(grid)), np.int32)
    for i in range(grid.shape[1]):
        place = np.minimum((keys >> bits * i) & ((1 << bits) - 1), len(squares) - 1)
        total += squares[place][:, grid[:, i]].astype(np.int32)
    return total


@compiled
def _pick(low, high, grid, squares, points, n):
    """The codes of ``n`` points for each key; the last of fewer repeats."""
    size = grid.shape[1]
    bits = 16 // size
    codes = np.zeros((len(low) * len(high), n), np.uint16)
    order, distances = np.empty(_SORTED, np.int64), np.empty(_SORTED, np.int64)
    kept = np.empty(n, np.int64)
    place = np.empty(size, np.int64)
    for key in range(len(codes)):
        valid = True
        for i in range(size):
            place[i] = (key >> bits * i) & ((1 << bits) - 1)
            valid = valid and place[i] < len(squares)
        if not valid:
            continue
        low_row, high_row = low[key % len(low)], high[key // len(low)]
        n_sorted = 0
        for point in range(len(grid)):
            distance = low_row[point] + high_row[point]
            if n_sorted == _SORTED and distance >= distances[_SORTED - 1]:
                continue
            k = min(n_sorted, _SORTED - 1)
            while k > 0 and distances[k - 1] > distance:
                distances[k], order[k] = distances[k - 1], order[k - 1]
                k -= 1
            distances[k], order[k] = distance, point
            n_sorted = min(n_sorted + 1, _SORTED)
        n_kept = 0
        for point in order[:n_sorted]:
            if n_kept < n and not _loses(grid, squares, place, point, kept, n_kept):
                kept[n_kept] = point
                n_kept += 1
        for k in range(n):
            codes[key, k] = points[kept[min(k, n_kept - 1)]]
    return codes


@compiled
def _loses(grid, squares, place, point, kept, n_kept):
    """Whether one of the kept points is at least as near in every coordinate."""
    for k in range(n_kept):
        nowhere_nearer = True
        for i in range(len(place)):
            mine = squares[place[i], grid[point, i]]
            if mine < squares[place[i], grid[kept[k], i]]:
                nowhere_nearer = False
                break
        if nowhere_nearer:
            return True
    return False
