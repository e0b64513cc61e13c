"""The visitor that quantizes: second moments in, GPTQ's matrices out, layer after layer."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.calibration.lockstep.watching import are_all_finite, require_finite
from quantkit.calibration.statistics import SecondMoment
from quantkit.core.errors import WeightsError
from quantkit.encodings.compensation import Compensation, prepare
from quantkit.encodings.gptq import Grid, Rounded, solve


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
        # Nothing here holds the moment while it is factorized.
        self._compensation = prepare(
            self._mean(inputs, columns, what), act_order=recipe.act_order, damp=recipe.damp
        )

    def _mean(self, inputs: Iterable[tuple[Tensor, float]], columns: int, what: str) -> Tensor:
        moment = SecondMoment(columns, self._device)
        for x, share in inputs:
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
        return torch.cat(replaced)
