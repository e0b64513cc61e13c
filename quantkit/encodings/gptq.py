"""GPTQ: rounding a matrix so that its outputs change least (Frantar et al., 2022).

A linear layer maps inputs x to W x. For a rounded matrix Q the expected squared error of the
output is the sum over rows of (w - q) H (w - q)ᵀ with H = E[x xᵀ]. Rounding column after column,
each column's error is made up for as well as the columns that are still free allow.

Only tensors here, no files. Rows of a matrix are outputs, its columns inputs.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quantkit.encodings.compensation import Compensation

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CARRIED = 512  # columns, about, whose errors are carried to the rest of the matrix in one product
_BLOCK = 128  # columns of them whose errors are carried to the rest of these in one
# How far ranges are shrunk in the search: by fine steps first, which 8 bits need, then coarse ones.
_SHRINKS = (1.0, 0.9975, 0.995, 0.99, 0.98, *(0.975 - 0.025 * step for step in range(20)))


@dataclass(frozen=True, slots=True)
class Grid:
    """The values that a weight may take.

    A group is ``group_size`` neighbouring columns of one row that share a scale and a zero point;
    -1 makes the whole row one group. ``symmetric`` grids have their zero in the middle.
    """

    bits: int  # 2, 3, 4 or 8
    group_size: int = 128
    symmetric: bool = True

    @property
    def top(self) -> int:
        """The largest level; the smallest is 0."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> float:
        """Where the zero of a symmetric grid is."""
        return (self.top + 1) / 2

    def width(self, columns: int) -> int:
        """Columns per group."""
        return columns if self.group_size == -1 else self.group_size


@dataclass(frozen=True, slots=True)
class Rounded:
    """A matrix on a grid: weight = scale * (level - zero).

    ``levels`` is uint8 (rows, columns), whose columns lie together; ``scales`` float32 values that
    float16 holds, and ``zeros`` whole float32 numbers from 1, both (rows, groups), groups in column
    order.
    """

    levels: Tensor
    scales: Tensor
    zeros: Tensor

    def dequantize(self) -> Tensor:
        """The weights, float32 (rows, columns); their columns lie together."""
        rows, columns = self.levels.shape
        weights = self.levels.T.float().reshape(self.scales.shape[1], -1, rows)
        weights.sub_(self.zeros.T[:, None]).mul_(self.scales.T[:, None])
        return weights.view(columns, rows).T


def solve(
    weight: Tensor, compensation: Compensation, grid: Grid, *, search: bool = True
) -> Rounded:
    """Round a matrix to a grid with the least output error that GPTQ finds.

    Where columns have an order of their own, groups stay what they are in the unsorted matrix and
    their scales are fixed beforehand ("static groups"); else a group's scale fits its weights as
    they are when its turn comes.

    Args:
        weight: (rows, columns).
        compensation: of its inputs.
        grid: where weights may lie; its groups must divide the columns.
        search: shrink each group's range where that lowers the error.

    """
    costs, order = compensation.costs, compensation.order
    rows, columns = weight.shape
    width = grid.width(columns)
    group_of = torch.arange(columns, device=weight.device) // width
    # One row per column of the matrix from here on, and one per group: what is used together then
    # lies together.
    before = weight.T.float().contiguous()
    scales = torch.empty(columns // width, rows, device=weight.device)
    zeros = torch.empty_like(scales)
    if order is not None:
        unsorted = torch.empty_like(costs)
        unsorted[order] = costs
        scales, zeros = fit(before.view(-1, width, rows), grid, unsorted if search else None)
        before, group_of = before.index_select(0, order), group_of[order]
    moved = before.clone()  # the columns as errors before them have moved them
    levels = torch.empty(columns, rows, dtype=torch.uint8, device=weight.device)
    block, together = _steps(grid, columns)
    errors = torch.empty(min(together, columns), rows, device=weight.device)
    chosen = torch.empty(min(block, columns), rows, device=weight.device)
    memory = compensation.begin(rows)
    for first in range(0, columns, together):
        last = min(first + together, columns)
        factor = compensation.within(slice(first, last))
        for start in range(first, last, block):
            end = min(start + block, columns)
            if order is None and start % width == 0:
                fitted = _fit_next(
                    slice(start, start + width), moved, before, compensation, grid, search
                )
                scales[start // width], zeros[start // width] = fitted
            some, later = slice(start - first, end - first), slice(end - first, None)
            _round_block(
                moved[start:end],
                before[start:end],
                factor[some, some].contiguous(),
                (group_of[start:end], scales, zeros),
                grid,
                (errors[some], chosen[: end - start]),
            )
            levels[start:end] = chosen[: end - start]
            moved[end:last].addmm_(factor[some, later].T, errors[some])
        compensation.carry(errors[: last - first], slice(first, last), moved, memory)
    if order is not None:
        levels = levels[order.argsort()]
    return Rounded(levels.T, scales.T.contiguous(), zeros.T.contiguous())


def carried_together(grid: Grid, columns: int) -> int:
    """How many columns `solve` rounds before it carries their errors to the rest."""
    return _steps(grid, columns)[1]


def _steps(grid: Grid, columns: int) -> tuple[int, int]:
    """How many columns are rounded one after another, and in how many their errors stay at first.

    Groups, which are fitted when their turn comes, begin where such steps do.
    """
    width = grid.width(columns)
    block = _BLOCK if width % _BLOCK == 0 or grid.group_size == -1 else width
    return block, max(1, _CARRIED // block) * block


def _fit_next(
    inside: slice,
    moved: Tensor,
    before: Tensor,
    compensation: Compensation,
    grid: Grid,
    search: bool,
) -> tuple[Tensor, Tensor]:
    """Scales and zeros of the group that comes next.

    They fit where its columns would all be now if none of them were rounded.
    """
    factor = compensation.within(inside)
    free = before[inside] + torch.linalg.solve_triangular(
        factor.T, moved[inside] - before[inside], upper=False, unitriangular=True
    )
    scales, zeros = fit(free[None], grid, compensation.costs[inside] if search else None)
    return scales[0], zeros[0]


def _round_block(
    moved: Tensor,
    before: Tensor,
    factor: Tensor,
    fitted: tuple[Tensor, Tensor, Tensor],
    grid: Grid,
    out: tuple[Tensor, Tensor],
) -> None:
    """Work out errors and levels of some columns, each a row here, which move those after them.

    Args:
        moved: the columns as errors before them have moved them; written over.
        before: the columns as they were.
        factor: of them.
        fitted: the group of each column, and the scales and zeros of all groups.
        grid: where weights may lie.
        out: for the errors and the levels, as floats.

    """
    if _has_kernel(moved):
        from quantkit.encodings.fast.columns import round_columns

        flat = [_flat(x) for x in (moved, before, factor, *fitted)]
        results = [_flat(x) for x in out]
        _in_parts(moved.shape[1], lambda *part: round_columns(*flat, grid.top, *part, *results))
        return
    errors, chosen = out
    group_of, scales, zeros = fitted
    for i, group in enumerate(group_of.tolist()):
        _nearest(moved[i], scales[group], zeros[group], grid, chosen[i])
        torch.sub(chosen[i], zeros[group], out=errors[i]).mul_(scales[group]).neg_().add_(before[i])
        moved[i + 1 :].addr_(factor[i, i + 1 :], errors[i])


def fit(groups: Tensor, grid: Grid, costs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scales and zeros for groups of weights; both come as (groups, rows).

    Args:
        groups: the weights, (groups, width, rows).
        grid: of them.
        costs: what a unit of squared error costs in each column, (groups * width). Where given,
            ranges are tried that clip the outermost weights, and the cheapest is taken.

    """
    n_groups, width, rows = groups.shape
    scales = torch.empty(n_groups, rows, device=groups.device)
    zeros = torch.empty_like(scales)
    for group in range(n_groups):
        cost = None if costs is None else costs[group * width : (group + 1) * width]
        scales[group], zeros[group] = _fit(groups[group], grid, cost)
    return scales, zeros


def _fit(group: Tensor, grid: Grid, costs: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scale and zero of each row of a group, (width, rows)."""
    low = group.amin(0).clamp(max=0)
    high = group.amax(0).clamp(min=0)
    if costs is None:
        return _scales(low, high, grid)
    shrinks = torch.tensor(_SHRINKS, device=group.device)[:, None]
    scales, zeros = _scales(low * shrinks, high * shrinks, grid)
    tried = _range_costs(group, scales.reciprocal(), zeros, grid, costs)
    best = tried.mul_(scales.square()).argmin(0, keepdim=True)
    return scales.gather(0, best)[0], zeros.gather(0, best)[0]


def _range_costs(
    group: Tensor, inverses: Tensor, zeros: Tensor, grid: Grid, costs: Tensor
) -> Tensor:
    """Squared errors in steps of the grid, (ranges, rows), for each row of ``inverses``."""
    if not _has_kernel(group):
        return torch.stack(
            [
                costs @ _clipped(group * inverse, zero, grid).square_()
                for inverse, zero in zip(inverses, zeros, strict=True)
            ]
        )
    from quantkit.encodings.fast.columns import range_costs

    out = torch.empty_like(inverses)
    flat = [_flat(x) for x in (group, costs, inverses, zeros)]

    def look_at(first: int, last: int) -> None:
        range_costs(*flat, grid.top, first, last, _flat(out))

    _in_parts(group.shape[1], look_at)
    return out


def _has_kernel(matrix: Tensor) -> bool:
    """Whether the loops over a matrix's rows are compiled: on a processor, for whole vectors."""
    # A machine lent for its GPU may lack numba (benchmarks/gpu_check.py). PyTorch finds the same.
    if matrix.device.type != "cpu" or find_spec("numba") is None:
        return False
    from quantkit.encodings.fast.simd import LANES

    return bool(matrix.shape[1] % LANES == 0)


def _flat(x: Tensor) -> "NDArray[Any]":
    flat: NDArray[Any] = x.view(-1).numpy()
    return flat


def _in_parts(rows: int, work: Callable[[int, int], None]) -> None:
    """Do the work on some rows each, in as many threads as PyTorch has."""
    from quantkit.encodings.fast.simd import LANES

    n_parts = torch.get_num_threads()
    step = -(-rows // (LANES * n_parts)) * LANES
    starts = range(0, rows, step)
    with ThreadPoolExecutor(n_parts) as pool:
        list(pool.map(work, starts, (min(start + step, rows) for start in starts)))


def _clipped(wanted: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """What rounding to the grid adds to weights in its steps."""
    return wanted.clamp(-zero, grid.top - zero).round_().sub_(wanted)


def _scales(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero of ranges that include 0.

    The format stores zeros less one, so the smallest is 1: where no weight is negative, the lowest
    level stays unused. Scales are rounded to float16, as they are stored, before anything is
    rounded with them.
    """
    low, high = (torch.where((low == 0) & (high == 0), end, x) for x, end in ((low, -1), (high, 1)))
    if grid.symmetric:
        high = torch.maximum(-low, high)
        scale = _as_stored(2 * high / grid.top)
        return scale, torch.full_like(scale, grid.middle)
    scale = _as_stored((high - low) / grid.top)
    zero = (-low / scale).round()
    tight = zero < 1
    scale = torch.where(tight, _as_stored(high / (grid.top - 1)), scale)
    return scale, zero.clamp(1, grid.top)


def _as_stored(scale: Tensor) -> Tensor:
    limits = torch.finfo(torch.float16)
    return scale.clamp(limits.smallest_normal, limits.max).half().float()


def _nearest(weights: Tensor, scale: Tensor, zero: Tensor, grid: Grid, out: Tensor) -> Tensor:
    return torch.div(weights, scale, out=out).round_().add_(zero).clamp_(0, grid.top)
