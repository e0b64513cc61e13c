"""What is gathered of the inputs of a layer's matrices: their squares, or all second moments."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.encodings.compensation import lower_half

_AT_ONCE = 2048  # rows of a second moment


@dataclass(frozen=True, slots=True)
class Sums:
    """Of one tensor: sums of squares, float32 (matrices, columns), and tokens, one per matrix."""

    squares: NDArray[np.float32]
    counts: NDArray[np.float32]


class SecondMoment:
    """The sum of x xᵀ over the inputs of one matrix, float32 (columns, columns), and its weight.

    It is half of the Hessian of the squared error of a layer's output (GPTQ's H).
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        self.sums = torch.zeros(columns, columns, dtype=torch.float32, device=device)
        self.count = 0.0

    def add(self, inputs: Tensor, share: float) -> None:
        """Add inputs, shape (tokens, columns), each with this weight."""
        for rows, left in lower_half(len(self.sums), _AT_ONCE):
            self.sums[rows, left].addmm_(inputs[:, rows].T, inputs[:, left], alpha=share)
        self.count += share * inputs.shape[0]

    def mean(self) -> Tensor:
        """The mean over what was added; zeros where nothing was. Nothing is added after it."""
        for rows, left in lower_half(len(self.sums), _AT_ONCE):
            self.sums[rows, left].div_(max(self.count, 1.0))
            above = slice(0, rows.start)
            self.sums[above, rows] = self.sums[rows, above].T
        return self.sums
