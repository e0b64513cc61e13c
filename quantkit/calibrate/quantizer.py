"""The visitor that quantizes: second moments in, GPTQ's matrices out, layer after layer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.calibrate.forward import Site, require_finite
from quantkit.calibrate.statistics import SecondMoment
from quantkit.encodings.gptq import Grid, Rounded, prepare, solve


@dataclass(frozen=True, slots=True)
class Recipe:
    """How GPTQ rounds: see `quantkit.encodings.gptq`."""

    grid: Grid
    act_order: bool = True
    damp: float = 0.01
    search: bool = True


class Quantizer:
    """Rounds every matrix that it is asked to replace and hands it on as it is done.

    A visitor of `Forward`. What later matrices are calibrated on are the outputs of those that
    were rounded before them, within a layer too: AutoGPTQ's "true sequential".
    """

    replaces = True

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        keep: Callable[[Site, str, Rounded], None],
    ) -> None:
        """Round by a recipe; ``keep`` gets each matrix's site, role and result."""
        self._recipe = recipe
        self._device = device
        self._keep = keep
        self._moment: SecondMoment | None = None

    def observe(self, _site: Site, inputs: Tensor, share: float) -> None:
        """Add to the second moment of the site at hand."""
        if self._moment is None:
            self._moment = SecondMoment(inputs.shape[1], self._device)
        self._moment.add(inputs, share)

    def replace(self, site: Site, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The site's matrices, rounded."""
        moment = self._moment or SecondMoment(weights[0].shape[1], self._device)
        self._moment = None
        recipe = self._recipe
        mean = moment.mean()
        require_finite(mean, f"what goes into {' and '.join(site.roles)} of layer {site.layer}")
        compensation = prepare(mean, act_order=recipe.act_order, damp=recipe.damp)
        del moment, mean
        replaced = []
        for role, weight in zip(site.roles, weights, strict=True):
            rounded = solve(weight, compensation, recipe.grid, search=recipe.search)
            self._keep(site, role, rounded)
            replaced.append(rounded.dequantize())
        return tuple(replaced)
