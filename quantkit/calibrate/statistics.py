"""What is gathered of the inputs of a layer's matrices: their squares, or all second moments."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.calibrate.forward import Site


@dataclass(frozen=True, slots=True)
class Sums:
    """Of one tensor: sums of squares, float32 (matrices, columns), and tokens, one per matrix."""

    squares: NDArray[np.float32]
    counts: NDArray[np.float32]


class SquareSums:
    """The diagonal of the second moment per matrix, what an importance matrix is made of.

    A visitor of `Forward`. Each batch is summed in float32 and the batches in float64, so that
    the sum's error does not grow with the text.
    """

    replaces = False

    def __init__(self, n_experts: int) -> None:
        self._n_experts = n_experts
        self._squares: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, NDArray[np.float64]] = {}

    def observe(self, site: Site, inputs: Tensor, share: float) -> None:
        """Add inputs, shape (tokens, columns); every role of the site gets the same."""
        squares = share * inputs.square().sum(0).double().cpu().numpy()
        matrices = 1 if site.expert is None else self._n_experts
        for role in site.roles:
            if role not in self._squares:
                self._squares[role] = np.zeros((matrices, inputs.shape[1]))
                self._counts[role] = np.zeros(matrices)
            self._squares[role][site.expert or 0] += squares
            self._counts[role][site.expert or 0] += share * inputs.shape[0]

    def replace(self, _site: Site, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Nothing is replaced."""
        return weights

    def take(self) -> dict[str, Sums]:
        """The sums by role, which then begin anew."""
        taken = {
            role: Sums(
                self._squares[role].astype(np.float32), self._counts[role].round().astype("f4")
            )
            for role in self._squares
        }
        self._squares.clear()
        self._counts.clear()
        return taken


class SecondMoment:
    """The sum of x xᵀ over the inputs of one matrix, float32 (columns, columns), and its weight.

    It is half of the Hessian of the squared error of a layer's output (GPTQ's H).
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        self.sums = torch.zeros(columns, columns, dtype=torch.float32, device=device)
        self.count = 0.0

    def add(self, inputs: Tensor, share: float) -> None:
        """Add inputs, shape (tokens, columns), each with this weight."""
        self.sums.addmm_(inputs.T, inputs, alpha=share)
        self.count += share * inputs.shape[0]

    def mean(self) -> Tensor:
        """The mean over what was added; zeros where nothing was."""
        return self.sums.div_(max(self.count, 1.0))
