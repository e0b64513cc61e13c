"""The best choice of an encoding for every unit within so many bytes. Pure: numbers in and out.

A unit has some encodings to choose from, each with its bytes and its loss, and losses add up. That
is the multiple-choice knapsack problem. It is solved as its linear relaxation is: the choices that
some Lagrange multiplier prefers are the corners of each unit's lower convex hull, so going from
corner to corner in the order of loss saved per byte visits every multiplier, exactly and without
bisecting one. What the last step leaves of the budget is filled greedily, and then improved by
exchanges of two units (Kellerer, Pferschy, Pisinger: Knapsack Problems, chapter 11). The loss is
above the least possible by less than the one step that did not fit would save.

Ties go to the unit that comes first, and all sums are taken in the units' order, so that the same
input gives the same choice. A model has some hundred units: plain Python is done with them before
numpy would be imported.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise
from operator import itemgetter
from typing import TypeAlias

_MOST_EXCHANGES = 1000
_NOTHING = 1e-12  # of all loss: what an exchange that saves less is not worth

_Point: TypeAlias = tuple[int, float]  # a choice's bytes and its loss
# What a unit can change to: bytes that it takes more, loss that it saves, unit, choice. Both
# numbers are negative where it becomes smaller.
_Change: TypeAlias = tuple[int, float, int, int]


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
        self._units: list[list[_Point]] = [
            [(choices[i].n_bytes, choices[i].loss) for i in kept]
            for choices, kept in zip(units, self._kept, strict=True)
        ]
        self._steps = self._sorted_steps()

    @property
    def smallest(self) -> int:
        """Bytes of the least that can be chosen."""
        return sum(unit[0][0] for unit in self._units)

    @property
    def largest(self) -> int:
        """Bytes of the choices that lose least."""
        return sum(unit[-1][0] for unit in self._units)

    def choose(self, budget: int) -> tuple[int, ...]:
        """The place of each unit's choice among its choices, for at most ``budget`` bytes.

        Raises:
            ValueError: the smallest choices take more.

        """
        left = budget - self.smallest
        if left < 0:
            raise ValueError(f"the smallest choices take {self.smallest} bytes, not {budget}")
        at = [0] * len(self._units)
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
        for row, unit in enumerate(self._units):
            per_byte = float("inf")
            for before, corner in pairwise(_corners(unit)):
                n_bytes = unit[corner][0] - unit[before][0]
                saved = unit[before][1] - unit[corner][1]
                # It falls along a hull, and no rounding may change the order of its corners.
                per_byte = min(per_byte, saved / n_bytes)
                steps.append((-per_byte, row, corner, n_bytes))
        return [(row, corner, n_bytes) for _, row, corner, n_bytes in sorted(steps)]

    def _fill(self, at: list[int], left: int) -> int:
        """Take the larger choice that fits and saves most per byte, as long as there is one."""

        def steps(row: int) -> Iterator[tuple[float, int, int, int, int]]:
            here = at[row]
            for n_bytes, saved, _, choice in self._larger(row, here):
                if n_bytes > left:  # nor will it ever, for less and less is left
                    break
                yield -saved / n_bytes, row, choice, n_bytes, here

        waiting = [step for row in range(len(at)) for step in steps(row)]
        heapify(waiting)
        while waiting:
            _, row, choice, n_bytes, before = heappop(waiting)
            if n_bytes > left or at[row] != before:
                continue
            at[row] = choice
            left -= n_bytes
            for step in steps(row):
                heappush(waiting, step)
        return left

    def _exchange(self, at: list[int], left: int) -> int | None:
        """Make one unit smaller and another one larger, where that saves most.

        What is left afterwards; None where no such exchange saves anything.
        """
        larger = [change for row, here in enumerate(at) for change in self._larger(row, here)]
        larger.sort(key=itemgetter(0))
        # Of all that are as small or smaller, the one that saves most; the first of equals.
        best: list[_Change] = []
        for change in larger:
            if not best or change[1] > best[-1][1]:
                best.append(change)
        sizes = [change[0] for change in best]
        most, pair = 0.0, None
        for row, here in enumerate(at):
            for change in self._smaller(row, here):
                reach = bisect_right(sizes, left - change[0])
                if not reach or best[reach - 1][2] == row:
                    continue
                gain = best[reach - 1][1] + change[1]
                if gain > most:
                    most, pair = gain, (change, best[reach - 1])
        lost = sum(unit[here][1] for unit, here in zip(self._units, at, strict=True))
        if pair is None or not most > _NOTHING * lost:
            return None
        for n_bytes, _, row, choice in pair:
            at[row] = choice
            left -= n_bytes
        return left

    def _larger(self, row: int, here: int) -> Iterator[_Change]:
        """What a unit can become that takes more, smallest first."""
        n_here, loss_here = self._units[row][here]
        for choice in range(here + 1, len(self._units[row])):
            n_bytes, loss = self._units[row][choice]
            yield n_bytes - n_here, loss_here - loss, row, choice

    def _smaller(self, row: int, here: int) -> Iterator[_Change]:
        """What a unit can become that takes less, smallest first."""
        n_here, loss_here = self._units[row][here]
        for choice in range(here):
            n_bytes, loss = self._units[row][choice]
            yield n_bytes - n_here, loss_here - loss, row, choice


def _undominated(choices: Sequence[Choice]) -> list[int]:
    """The places of choices that grow in bytes and fall in loss."""
    kept: list[int] = []
    for i in sorted(range(len(choices)), key=lambda i: (choices[i].n_bytes, choices[i].loss, i)):
        if not kept or choices[i].loss < choices[kept[-1]].loss:
            kept.append(i)
    return kept


def _corners(points: Sequence[_Point]) -> list[int]:
    """The corners of the lower convex hull of points that grow in bytes and fall in loss."""
    corners: list[int] = []
    for point, (n_bytes, loss) in enumerate(points):
        while len(corners) > 1:
            (n_before, loss_before), (n_last, loss_last) = (points[i] for i in corners[-2:])
            rise = (loss_last - loss_before) * float(n_bytes - n_before)
            if rise < (loss - loss_before) * float(n_last - n_before):
                break  # the last one lies below the line from the one before it
            corners.pop()
        corners.append(point)
    return corners
