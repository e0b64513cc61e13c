"""The grids of ggml's i-quants, and for every place between their points those that may be nearest.

A group of four or eight weights is stored as the number of a point of a grid; its coordinates are
odd numbers: 1, 3 and 5, or 1 to 15. Where a group divided by its scale does not round to a point
(to its *cell*), ggml tries the points of the nearest shells around the cell, in order of distance
and number, and takes the first with the least weighted error.

Most of these cannot win whatever the weights. Say in which half of its cell each coordinate
lies; then it is known for each coordinate which of two points is nearer, and a point that is
nowhere nearer than another loses to it: each rounded difference, product and sum of its error is
at least as great. The other lies in a nearer shell, so it comes first and wins a tie as well. What
is left are the lists of ``Lists``, on average seven points where ggml tries forty (IQ2_XS). Where a
coordinate is so near to the border of a half that rounding may decide, the whole list serves.

The points are read from the library itself, by decoding a block of each number; the shells follow
``iq2xs_init_impl`` and ``iq3xs_init_impl`` of ``ggml/src/ggml-quants.c``.
"""

from collections import namedtuple
from functools import cache

import numpy as np
from numpy.typing import NDArray

from quantkit.encodings import ggml
from quantkit.encodings.encoding import encoding
from quantkit.encodings.fast.jit import compiled

ON_GRID = 1 << 30  # beside the code of a point: the cell is a point itself
LENGTH_BITS = 9  # of a head: how many points its list has
LONGEST = (1 << LENGTH_BITS) - 1
WHOLE_CELLS = 1 << 16  # where their keys begin; below are those of half cells
_SHELLS = {"IQ3_XXS": 2, "IQ3_S": 3, "IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ1_S": 3}

# ``heads[key]``: where the list begins << ``LENGTH_BITS`` | how many points it has, and
# ``ON_GRID``. ``codes``: the points of all lists by their coordinates. ``numbers[code]``: which
# point of the grid that is.
Lists = namedtuple("Lists", "heads codes numbers")


@cache
def read_grid(name: str) -> NDArray[np.uint8]:
    """The levels (0 to 2, or 0 to 7) of the points of a format's grid, shape (points, group)."""
    kind = encoding(name)
    size, n_points = {
        "IQ3_XXS": (4, 256),
        "IQ3_S": (4, 512),
        "IQ2_XXS": (8, 256),
        "IQ2_XS": (8, 512),
        "IQ2_S": (8, 1024),
        "IQ1_S": (8, 2048),
    }[name]
    per_block = 256 // size
    numbers = np.arange(n_points).reshape(-1, per_block)
    low, high = numbers & 255, numbers >> 8
    raw = np.zeros((len(numbers), kind.bytes), np.uint8)
    raw[:, 1] = 0x3C  # a float16 scale of 1
    if name == "IQ2_XXS":
        raw[:, 2:].reshape(-1, 8, 8)[:, :, :4] = low.reshape(-1, 8, 4)
    elif name == "IQ2_XS":
        raw[:, 2:66:2], raw[:, 3:66:2] = low, high
    elif name == "IQ1_S":
        bits = (high.reshape(-1, 8, 4) << np.arange(0, 12, 3)).sum(-1)
        raw[:, 2:34], raw[:, 34::2], raw[:, 35::2] = low, bits & 255, bits >> 8
    else:
        raw[:, 2 : 2 + per_block] = low
        if n_points > 256:
            per_byte = per_block // 8
            bits = high.reshape(-1, 8, per_byte) << np.arange(0, 8, 8 // per_byte)
            raw[:, 66:74] = bits.sum(-1)
    values = ggml.decode(raw.reshape(-1), kind).reshape(n_points, size)
    return np.searchsorted(np.unique(values), values).astype(np.uint8)


@cache
def make_lists(name: str) -> Lists:
    """The points to try for every half cell and every whole cell of a format's grid.

    The code of a point has four bits for each of four coordinates, or two bits for the level of
    each of eight.
    """
    if name == "IQ1_M":
        return make_lists("IQ1_S")
    grid = read_grid(name)
    if grid.shape[1] == 4:
        codes = ((2 * grid + 1).astype(np.int64) << np.arange(0, 16, 4)).sum(-1).astype(np.uint16)
    else:
        codes = (grid.astype(np.int64) << np.arange(0, 16, 2)).sum(-1).astype(np.uint16)
    numbers = np.zeros(1 << 16, np.uint16)
    numbers[codes] = np.arange(len(grid))
    heads, listed = _fill(grid, _SHELLS[name], codes)
    return Lists(heads, listed, numbers)


@compiled
def _fill(grid, n_shells, point_codes):
    """The heads and codes of ``Lists``."""
    size = grid.shape[1]
    n_levels, bits = (8, 3) if size == 4 else (3, 2)
    heads = np.zeros(WHOLE_CELLS + (1 << bits * size), np.int32)
    codes = np.empty(1 << 16, np.uint16)
    n_codes = 0
    shell = np.empty(len(grid), np.int32)
    kept = np.empty(len(grid), np.int32)
    cell, half = np.empty(size, np.int64), np.empty(size, np.int64)
    own = np.empty((1 << size) + 1, np.int32)
    half_bits = 16 // size
    for number in range(1 << bits * size):
        valid = True
        for i in range(size):
            cell[i] = (number >> bits * i) & ((1 << bits) - 1)
            valid = valid and cell[i] < n_levels
        if not valid:
            continue
        n_shell, on_grid = _shells(grid, cell, n_shells, shell)
        n_own = 0
        # The first round is for the whole cell; in the others each bit says which half.
        for round_ in range((1 << size) + 1):
            sides = round_ - 1
            key, twice = 0, False
            for i in range(size):
                side = (sides >> i) & 1
                inner = 0 < cell[i] < n_levels - 1
                twice = twice or (side == 1 and not inner)  # at the rim both halves are alike
                half[i] = side if inner else (1 if cell[i] == 0 else 0)
                key |= (2 * cell[i] + half[i] - 1) << half_bits * i
            if round_ == 0:
                key, n_kept = WHOLE_CELLS + number, n_shell
                kept[:n_shell] = shell[:n_shell]
            elif twice:
                continue
            else:
                n_kept = _undominated(grid, cell, half, shell, n_shell, kept)
            if n_kept > LONGEST or n_codes > (ON_GRID - 1) >> LENGTH_BITS:
                raise OverflowError("a head does not hold the lists of this grid")
            if n_codes + n_kept > codes.size:
                codes = np.append(codes, np.empty(codes.size, np.uint16))
            for k in range(n_kept):
                codes[n_codes + k] = point_codes[kept[k]]
            head, n_new = n_codes << LENGTH_BITS | n_kept, n_kept
            for known in own[:n_own]:  # many halves of a cell have the same list
                start = known >> LENGTH_BITS
                if known & LONGEST == n_kept and _same(codes, start, n_codes, n_kept):
                    head, n_new = known, 0
                    break
            if n_new:
                own[n_own] = head
                n_own += 1
            heads[key] = head | (ON_GRID if on_grid else 0)
            n_codes += n_new
    return heads, codes[:n_codes]


@compiled
def _same(codes, a, b, n):
    same = True
    for k in range(n):
        same = same and codes[a + k] == codes[b + k]
    return same


@compiled
def _shells(grid, cell, n_shells, shell):
    """The points of the shells nearest to a cell, in order; how many; whether it is one itself."""
    n, last = 0, -1
    for _ in range(n_shells):
        nearest = 1 << 30
        for turn in range(2):  # how far the next shell is, then who is in it
            for j in range(len(grid)):
                distance = 0
                for i in range(len(cell)):
                    off = grid[j, i] - cell[i]
                    distance += off * off
                if distance == 0:
                    shell[0] = j
                    return 1, True
                if turn == 0 and distance > last:
                    nearest = min(nearest, distance)
                elif turn == 1 and distance == nearest:
                    shell[n] = j
                    n += 1
        last = nearest
    return n, False


@compiled
def _undominated(grid, cell, half, shell, n_shell, kept):
    """Those points of ``shell`` that lose to none before them whatever the weights; how many."""
    size = len(cell)
    n_kept = 0
    for r in range(n_shell):
        loses = False
        for k in range(n_kept):
            loses = True
            for i in range(size):
                mine = grid[shell[r], i] - cell[i]
                other = grid[kept[k], i] - cell[i]
                # Twice the distance in levels from the middle of the half.
                if abs(4 * other - 2 * half[i] + 1) > abs(4 * mine - 2 * half[i] + 1):
                    loses = False
                    break
            if loses:
                break
        if not loses:
            kept[n_kept] = shell[r]
            n_kept += 1
    return n_kept
