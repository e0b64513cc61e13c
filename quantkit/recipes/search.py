"""The best choice of an encoding for every unit within so many bytes. Pure: numbers in and out.

A unit has some encodings to choose from, each with its bytes and its loss, and losses add up. That
is the multiple-choice knapsack problem. It is solved as its linear relaxation is: the choices that
some Lagrange multiplier prefers are the corners of each unit's lower convex hull, so going from
corner to corner in the order of loss saved per byte visits every multiplier, exactly and without
bisecting one. What the last step leaves of the budget is filled greedily, and then improved by
exchanges of two units (Kellerer, Pferschy, Pisinger: Knapsack Problems, chapter 11). The loss is
above the least possible by less than the one step that did not fit would save.

Ties go to the unit that comes first, and all sums are taken in the units' order, so that the same
input gives the same choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_Choices: TypeAlias = NDArray[np.int64]

_NEVER = np.int64(2**62)  # bytes of a choice that a unit does not have
_MOST_EXCHANGES = 1000
_NOTHING = 1e-12  # of all loss: what an exchange that saves less is not worth


@dataclass(frozen=True, slots=True)
class Choice:
    """One encoding of a unit: its bytes in the file, padding included, and what it loses."""

    encoding: str
    n_bytes: int
    loss: float


class Search:
    """The best choices for some units, for any budget.

    Of choices that take the same bytes or more and lose no less than another one, nothing is left.
    """

    def __init__(self, units: Sequence[Sequence[Choice]]) -> None:
        """Prepare the search; every unit has at least one choice."""
        self._kept = [_undominated(choices) for choices in units]
        width = max(map(len, self._kept), default=1)
        shape = (len(units), width)
        self._bytes = np.full(shape, _NEVER, np.int64)
        self._loss = np.full(shape, np.inf)
        for row, (choices, kept) in enumerate(zip(units, self._kept, strict=True)):
            self._bytes[row, : len(kept)] = [choices[i].n_bytes for i in kept]
            self._loss[row, : len(kept)] = [choices[i].loss for i in kept]
        self._rows = np.arange(len(units))
        self._steps = self._sorted_steps()

    @property
    def smallest(self) -> int:
        """Bytes of the least that can be chosen."""
        return int(self._bytes[:, 0].sum())

    @property
    def largest(self) -> int:
        """Bytes of the choices that lose least."""
        return sum(int(self._bytes[row, len(kept) - 1]) for row, kept in enumerate(self._kept))

    def choose(self, budget: int) -> tuple[int, ...]:
        """The place of each unit's choice among its choices, for at most ``budget`` bytes.

        Raises:
            ValueError: the smallest choices take more.

        """
        left = budget - self.smallest
        if left < 0:
            raise ValueError(f"the smallest choices take {self.smallest} bytes, not {budget}")
        at: _Choices = np.zeros(len(self._kept), np.int64)
        for row, corner, n_bytes in self._steps:
            if n_bytes > left:
                break
            at[row] = corner
            left -= n_bytes
        left = self._fill(at, left)
        for _ in range(_MOST_EXCHANGES):
            exchanged = self._exchange(at, left)
            if exchanged is None:
                break
            left = self._fill(at, exchanged)
        return tuple(kept[i] for kept, i in zip(self._kept, at, strict=True))

    def _sorted_steps(self) -> list[tuple[int, int, int]]:
        """Steps from corner to corner as (unit, corner, bytes), those that save most first."""
        steps = []
        for row in range(len(self._kept)):
            per_byte = np.inf
            corners = _corners(self._bytes[row], self._loss[row], len(self._kept[row]))
            for before, corner in pairwise(corners):
                n_bytes = int(self._bytes[row, corner] - self._bytes[row, before])
                saved = float(self._loss[row, before] - self._loss[row, corner])
                # It falls along a hull, and no rounding may change the order of its corners.
                per_byte = min(per_byte, saved / n_bytes)
                steps.append((-per_byte, row, corner, n_bytes))
        return [(row, corner, n_bytes) for _, row, corner, n_bytes in sorted(steps)]

    def _fill(self, at: _Choices, left: int) -> int:
        """Take the larger choice that fits and saves most per byte, as long as there is one."""
        while True:
            n_bytes, saved = self._changes(at)
            fits = (n_bytes > 0) & (n_bytes <= left)
            if not fits.any():
                return left
            per_byte = np.where(fits, saved / np.where(fits, n_bytes, 1), -np.inf)
            row, choice = divmod(int(per_byte.argmax()), per_byte.shape[1])
            at[row] = choice
            left -= int(n_bytes[row, choice])

    def _exchange(self, at: _Choices, left: int) -> int | None:
        """Make one unit smaller and another one larger, where that saves most.

        What is left afterwards; None where no such exchange saves anything.
        """
        n_bytes, saved = self._changes(at)
        up_rows, up_choices = np.nonzero((n_bytes > 0) & (n_bytes < _NEVER // 2))
        down_rows, down_choices = np.nonzero(n_bytes < 0)
        if not (up_rows.size and down_rows.size):
            return None
        order = np.argsort(n_bytes[up_rows, up_choices], kind="stable")
        up_rows, up_choices = up_rows[order], up_choices[order]
        up_bytes, up_saved = n_bytes[up_rows, up_choices], saved[up_rows, up_choices]
        # Of all that are as small or smaller, the one that saves most; the first of equals.
        most = np.maximum.accumulate(up_saved)
        is_new = np.concatenate(([True], up_saved[1:] > most[:-1]))
        best = np.maximum.accumulate(np.where(is_new, np.arange(up_saved.size), 0))
        down_bytes = n_bytes[down_rows, down_choices]
        reach = np.searchsorted(up_bytes, left - down_bytes, side="right") - 1
        partner = best[np.maximum(reach, 0)]
        gain = up_saved[partner] + saved[down_rows, down_choices]
        gain[(reach < 0) | (up_rows[partner] == down_rows)] = -np.inf
        first = int(gain.argmax())
        if not gain[first] > _NOTHING * float(self._loss[self._rows, at].sum()):
            return None
        other = int(partner[first])
        at[down_rows[first]] = down_choices[first]
        at[up_rows[other]] = up_choices[other]
        return left - int(down_bytes[first]) - int(up_bytes[other])

    def _changes(self, at: _Choices) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Of every other choice of every unit: the bytes that it takes more, the loss it saves."""
        n_bytes = self._bytes - self._bytes[self._rows, at][:, None]
        saved = self._loss[self._rows, at][:, None] - self._loss
        return n_bytes, saved


def _undominated(choices: Sequence[Choice]) -> list[int]:
    """The places of choices that grow in bytes and fall in loss."""
    kept: list[int] = []
    for i in sorted(range(len(choices)), key=lambda i: (choices[i].n_bytes, choices[i].loss, i)):
        if not kept or choices[i].loss < choices[kept[-1]].loss:
            kept.append(i)
    return kept


def _corners(n_bytes: NDArray[np.int64], loss: NDArray[np.float64], count: int) -> list[int]:
    """The corners of the lower convex hull of points that grow in bytes and fall in loss."""
    corners: list[int] = []
    for point in range(count):
        while len(corners) > 1:
            before, last = corners[-2], corners[-1]
            rise = (loss[last] - loss[before]) * float(n_bytes[point] - n_bytes[before])
            if rise < (loss[point] - loss[before]) * float(n_bytes[last] - n_bytes[before]):
                break  # the last one lies below the line from the one before it
            corners.pop()
        corners.append(point)
    return corners
