"""The grids of the i-quants and the points that may be nearest."""

import gguf.quants
import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.encodings.fast.grids import (
    LENGTH_BITS,
    LONGEST,
    ON_GRID,
    WHOLE_CELLS,
    Lists,
    make_lists,
    read_grid,
)
from tests.encodings.rows import COLUMNS, importance, normal, slab_of
from tests.encodings.test_fast import ON_GRIDS, WEIGHTED_ONLY, assert_same

GRIDS = {"IQ3_XXS": 2, "IQ3_S": 3, "IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ1_S": 3}  # shells


def points_of(lists: Lists, key: int) -> list[int]:
    head = int(lists.heads[key])
    first = (head & (ON_GRID - 1)) >> LENGTH_BITS
    points: list[int] = lists.numbers[lists.codes[first : first + (head & LONGEST)]].tolist()
    return points


def ranked(cell: NDArray[np.int64], grid: NDArray[np.int64], shells: int) -> list[int]:
    distances = ((grid - cell) ** 2).sum(1)
    if distances.min() == 0:
        return [int(distances.argmin())]
    farthest = np.unique(distances)[:shells][-1]
    order = np.argsort(distances, kind="stable")
    nearest: list[int] = order[distances[order] <= farthest].tolist()
    return nearest


@pytest.mark.parametrize("name", GRIDS)
def test_the_grids_are_those_of_gguf(name: str) -> None:
    kind = getattr(gguf.quants, name)
    kind.init_grid()
    theirs = kind.grid.reshape(-1, kind.grid_shape[1])
    expected = np.searchsorted(np.unique(theirs), theirs)
    np.testing.assert_array_equal(read_grid(name), expected)


@pytest.mark.parametrize("name", GRIDS)
def test_whole_cells_have_the_nearest_shells_in_order(name: str) -> None:
    grid, lists = read_grid(name).astype(np.int64), make_lists(name)
    size = grid.shape[1]
    n_levels, bits = (8, 3) if size == 4 else (3, 2)
    cells = np.random.default_rng(0).integers(0, n_levels, (200, size))
    longest = 1 - np.eye(size, dtype=np.int64)  # 292 points in IQ2_XS
    for cell in np.concatenate([cells, longest]):
        key = WHOLE_CELLS + int((cell << bits * np.arange(size)).sum())
        expected = ranked(cell, grid, GRIDS[name])
        assert points_of(lists, key) == expected
        assert bool(lists.heads[key] & ON_GRID) == ((grid[expected[0]] == cell).all())


@pytest.mark.parametrize("name", GRIDS)
def test_what_was_left_out_of_a_list_loses_under_any_weights(name: str) -> None:
    grid, lists = read_grid(name).astype(np.int64), make_lists(name)
    size = grid.shape[1]
    n_levels, bits = (8, 4) if size == 4 else (3, 2)
    rng = np.random.default_rng(1)
    for _ in range(300):
        y = np.array(rng.uniform(0.01, 2 * n_levels - 0.01, size), np.float32)
        near = np.abs(y - np.rint(y)) < 1e-4
        y[near] += np.float32(0.01)
        cell = np.clip(np.floor(y / 2), 0, n_levels - 1).astype(np.int64)
        half = np.clip(np.floor(y), 1, 2 * n_levels - 2).astype(np.int64) - 1
        whole = ranked(cell, grid, GRIDS[name])
        few = points_of(lists, int((half << bits * np.arange(size)).sum()))
        assert set(few) <= set(whole)
        for _ in range(20):
            weights = np.array(rng.lognormal(0, 4, size), np.float32)
            weights[rng.random(size) < 0.2] = 0  # so that there are ties, too
            errors = np.zeros(len(whole), np.float32)
            for i in range(size):
                off = np.float32(2) * grid[whole, i].astype(np.float32) + np.float32(1) - y[i]
                errors = errors + weights[i] * off * off
            assert whole[int(errors.argmin())] in few


@pytest.mark.parametrize("name", ON_GRIDS)
def test_rows_full_of_ties(name: str) -> None:
    """Few magnitudes and equal importance: points that are equally good, and equal weights."""
    rows = (np.round(normal(24) * 3) / 3).astype(np.float32)
    assert_same(slab_of(rows), name, np.ones(COLUMNS, np.float32))
    if name not in WEIGHTED_ONLY:
        assert_same(slab_of(rows), name, None)


@pytest.mark.parametrize("name", ON_GRIDS)
def test_weights_that_no_error_fits_are_refused(name: str) -> None:
    """There ggml itself ends the process."""
    assert_same(slab_of(normal(1) * np.float32(1e30)), name, importance(COLUMNS))
