"""How the columns of a matrix make up for each other's errors, for GPTQ.

With H = M Mᵀ and M upper triangular, the error (w - q) H (w - q)ᵀ is the sum of the squares of
(w - q) M, whose entry i depends on the columns up to i alone: column i is rounded from where it
makes its entry 0. So no inverse is needed, as it is where the columns that are still free are moved
at once (Chee et al., 2023, show that both give the same).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_MOST_DAMPING = 1.0
_DAMPING_STEP = 10.0
_ROWS = 512  # of a moment, put in another order at once


class Compensation(Protocol):
    """How the columns of a matrix make up for each other's errors, and the order to round them.

    There is a matrix of factors, upper triangular with ones on the diagonal, (columns, columns), in
    that order: an error e of column i, its weight less what it was rounded to, moves column j by
    e * factor[i, j]. What column i is off from where it was moved to costs its square times
    ``costs[i]``. ``order`` is None for columns as they come.
    """

    @property
    def costs(self) -> Tensor:
        """Of a unit of squared error in each column, (columns)."""
        ...

    @property
    def order(self) -> Tensor | None:
        """Numbers of the columns as they are rounded."""
        ...

    def within(self, columns: slice) -> Tensor:
        """Factors by which these columns move each other."""
        ...

    def begin(self, rows: int) -> Tensor:
        """What `carry` remembers of a matrix of so many rows: nothing yet."""
        ...

    def carry(self, errors: Tensor, columns: slice, moved: Tensor, memory: Tensor) -> None:
        """Move the columns after some, as far as they are next, by the errors of these.

        Args:
            errors: (columns, rows), of these.
            columns: which they are; each call's begin where those of the last call ended.
            moved: all columns, (columns, rows), written over.
            memory: of the calls before, written over.

        """
        ...


@dataclass(frozen=True, slots=True)
class DenseCompensation:
    """The whole matrix of factors: for inputs of many tokens."""

    factor: Tensor
    costs: Tensor
    order: Tensor | None

    def within(self, columns: slice) -> Tensor:
        """Factors by which these columns move each other."""
        return self.factor[columns, columns]

    def begin(self, rows: int) -> Tensor:
        """Nothing: all columns are moved at once."""
        return self.factor.new_empty(0, rows)

    def carry(self, errors: Tensor, columns: slice, moved: Tensor, _memory: Tensor) -> None:
        """Move all columns after these."""
        after = slice(columns.stop, None)
        moved[after].addmm_(self.factor[columns, after].T, errors)


def prepare(moment: Tensor, *, act_order: bool = False, damp: float = 0.01) -> DenseCompensation:
    """What matrices with the same inputs share.

    An input that was always 0 neither makes up for others nor is made up for, so a matrix that saw
    nothing at all is rounded to nearest.

    Args:
        moment: second moment of the inputs, (columns, columns), up to a factor; it is used up.
        act_order: round the columns with the strongest inputs first.
        damp: added to the diagonal, as a share of its mean; 10 times as much if that does not
            make the matrix positive definite, and so on.

    """
    strength = moment.diagonal().clone()
    order = order_of(strength) if act_order else None
    mean = mean_of_seen(strength)
    moment.diagonal()[strength == 0] = mean
    forwards = torch.arange(len(moment), device=moment.device) if order is None else order
    held = [_reordered(moment, forwards.flip(0))]
    del moment  # no more than two are there at a time, if the caller has let go of it
    factor, costs = factorize(held.pop(), damp * mean)
    return DenseCompensation(factor, costs, order)


def order_of(strength: Tensor) -> Tensor:
    """The columns with the strongest inputs first."""
    return strength.argsort(descending=True, stable=True)


def mean_of_seen(strength: Tensor) -> float:
    """The mean square of inputs that were not always 0; 1 where there are none."""
    return float(strength.sum() / (strength != 0).sum().clamp(min=1)) or 1.0


def more_damping(damp: float, mean: float) -> float:
    """What is added to a diagonal of that mean next, where ``damp`` was not enough."""
    return max(damp * _DAMPING_STEP, 1e-4 * mean)


def lower_half(size: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Some rows of a symmetric matrix, and its columns up to their last: the rest is mirrored."""
    for start in range(0, size, at_once):
        stop = min(start + at_once, size)
        yield slice(start, stop), slice(0, stop)


def _reordered(moment: Tensor, order: Tensor) -> Tensor:
    reordered = torch.empty_like(moment)
    for start in range(0, len(moment), _ROWS):
        rows = order[start : start + _ROWS]
        torch.index_select(moment[rows], 1, order, out=reordered[start : start + _ROWS])
    return reordered


def factorize(turned: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    """What `DenseCompensation` holds of a moment, whose rows and columns come in reverse order.

    In that order, the Cholesky factor of a matrix is the M with M Mᵀ = matrix. It is computed in
    float32: damping bounds how far apart its numbers are, and there is more of it where that fails.

    Args:
        turned: (columns, columns); it is used up.
        damp: added to the diagonal.

    Returns:
        The factor with ones on its diagonal, and the squares of what was there.

    """
    mean = float(turned.diagonal().mean())
    added = 0.0
    while True:
        turned.diagonal().add_(damp - added)
        added = damp
        lower, failed = torch.linalg.cholesky_ex(turned)
        if not failed and torch.isfinite(lower.diagonal()).all():
            break
        if damp >= _MOST_DAMPING * mean:  # rounding to nearest is what is left
            unit = torch.eye(len(turned), device=turned.device)
            return unit, torch.ones(len(turned), device=turned.device)
        damp = more_damping(damp, mean)
    del turned
    upper = lower.flip(0, 1)
    del lower
    diagonal = upper.diagonal().clone()
    upper.div_(diagonal)
    return upper, diagonal.square()
