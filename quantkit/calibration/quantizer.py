"""The visitor that quantizes: second moments in, GPTQ's matrices out, layer after layer."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.calibration.lockstep.watching import are_all_finite, require_finite
from quantkit.calibration.statistics import SecondMoment
from quantkit.core.errors import WeightsError
from quantkit.encodings.compensation import Compensation, prepare
from quantkit.encodings.gptq import Grid, Rounded, carried_together, solve
from quantkit.encodings.low_rank import FEWER, prepare_low_rank


@dataclass(frozen=True, slots=True)
class Recipe:
    """How GPTQ rounds: see `quantkit.encodings.gptq`."""

    grid: Grid
    act_order: bool = True
    damp: float = 0.01
    search: bool = True


class Quantizer:
    """Rounds every matrix that it is asked to replace and hands it on as it is done.

    A `Replacer`. What later matrices are calibrated on are the outputs of those that were rounded
    before them, within a layer too: AutoGPTQ's "true sequential".
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        parameters: Collection[str],
        keep: Callable[[str, int | None, slice, Rounded], None],
        cuts: Mapping[tuple[str, int | None], tuple[slice, ...]] | None = None,
    ) -> None:
        """Prepare to round.

        Args:
            recipe: how.
            device: where the model is run.
            parameters: of which matrices are rounded.
            keep: gets each matrix's parameter, its number there, its rows, and what came of them.
            cuts: rows of matrices that are rounded each for itself; by default all together.

        """
        self._recipe = recipe
        self._device = device
        self._parameters = parameters
        self._keep = keep
        self._cuts = cuts or {}
        self._compensation: Compensation | None = None

    def wants(self, parameter: str) -> bool:
        """Whether a parameter's matrices are rounded."""
        return parameter in self._parameters

    def take_in(self, inputs: Iterable[tuple[Tensor, float]], columns: int, what: str) -> None:
        """Work out how columns of the next matrices make up for each other.

        Raises:
            CalibrationError: an input is not finite.

        """
        self._compensation = None  # before there is another
        recipe = self._recipe
        step = carried_together(recipe.grid, columns)
        # A group's scale is fitted to columns as all errors before them have moved them.
        fits = recipe.act_order or recipe.grid.width(columns) <= step
        most = columns // FEWER if fits else 0
        inputs = iter(inputs)
        few = _up_to(most, inputs)
        if sum(len(x) for x, _ in few) <= most:
            stacked = self._stacked(few, columns, what)
            self._compensation = prepare_low_rank(
                stacked, step, act_order=recipe.act_order, damp=recipe.damp
            )
            return
        # Nothing here holds the moment while it is factorized.
        self._compensation = prepare(
            self._mean(few, inputs, columns, what), act_order=recipe.act_order, damp=recipe.damp
        )

    def _stacked(self, some: list[tuple[Tensor, float]], columns: int, what: str) -> Tensor:
        """Inputs whose squares add up to the mean second moment; ``some`` is used up."""
        count = max(1.0, sum(share * len(x) for x, share in some))
        parts = [torch.empty(0, columns, device=self._device)]
        while some:
            x, share = some.pop(0)
            parts.append(x * math.sqrt(share / count))
        stacked = torch.cat(parts)
        require_finite(stacked.square().sum(0), f"what goes into {what}")
        return stacked

    def _mean(
        self,
        few: list[tuple[Tensor, float]],
        rest: Iterator[tuple[Tensor, float]],
        columns: int,
        what: str,
    ) -> Tensor:
        """The mean second moment; ``few`` is used up."""
        moment = SecondMoment(columns, self._device)
        while few:
            moment.add(*few.pop(0))
        for x, share in rest:
            moment.add(x, share)
        mean = moment.mean()
        require_finite(mean, f"what goes into {what}")
        return mean

    def replace(self, parameter: str, expert: int | None, matrix: Tensor) -> Tensor:
        """A matrix, rounded.

        Raises:
            WeightsError: a weight is not finite.

        """
        if not are_all_finite(matrix):
            one = parameter if expert is None else f"{parameter} of expert {expert}"
            raise WeightsError(
                f"{one} has a NaN or infinite weight; no quant of it can be right. Download the "
                "checkpoint again or ask the model's author."
            )
        assert self._compensation is not None  # noqa: S101 - its inputs have been taken in
        recipe = self._recipe
        whole = slice(0, len(matrix))
        replaced = []
        for rows in self._cuts.get((parameter, expert), (whole,)):
            rounded = solve(matrix[rows], self._compensation, recipe.grid, search=recipe.search)
            self._keep(parameter, expert, rows, rounded)
            replaced.append(rounded.dequantize())
        return replaced[0] if len(replaced) == 1 else torch.cat(replaced)


def _up_to(most: int, inputs: Iterator[tuple[Tensor, float]]) -> list[tuple[Tensor, float]]:
    """The first inputs until they have more than so many rows, or all."""
    some: list[tuple[Tensor, float]] = []
    rows = 0
    while rows <= most and (one := next(inputs, None)) is not None:
        some.append(one)
        rows += len(one[0])
    return some
