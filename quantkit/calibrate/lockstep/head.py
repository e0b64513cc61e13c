"""The matrix that gives every token its score, as it is stored, with some rows in float32.

It is the largest of many models: 2.5 GB in float32 for 152,000 tokens of 4,096 numbers.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from quantkit.calibrate.lockstep.parameters import Parameters

_BLOCK = 64 * 2**20  # bytes of rows in float32


class Head:
    """Stands in for a model's output embeddings, a plain matrix."""

    def __init__(self, name: str, module: nn.Linear, parameters: Parameters) -> None:
        self._name = name
        self._module = module
        self._parameters = parameters
        self._stored: Tensor | None = None
        self._bias: Tensor | None = None

    def put(self, enter: Callable[[], None]) -> Callable[[], None]:
        """Have the module's calls come here, after ``enter``; the result ends that.

        ``enter`` sees to it that `load` was called.
        """

        def forward(x: Tensor) -> Tensor:
            enter()
            return self._scores(x)

        self._module.forward = forward

        def undo() -> None:
            del self._module.forward
            self._stored = self._bias = None

        return undo

    def load(self) -> None:
        """Read the matrix, unless that is done.

        Raises:
            CheckpointError: it is missing, or cannot be read.

        """
        if self._stored is None:
            if self._module.bias is not None:
                [self._bias] = self._parameters.load([f"{self._name}.bias"]).values()
            self._stored = self._parameters.as_stored(f"{self._name}.weight")

    def _scores(self, x: Tensor) -> Tensor:
        weights = self._stored
        assert weights is not None  # noqa: S101 - it was loaded
        scores = torch.empty(*x.shape[:-1], len(weights), device=x.device)
        step = max(1, _BLOCK // (4 * weights.shape[1]))
        for first in range(0, len(weights), step):
            some = slice(first, first + step)
            bias = None if self._bias is None else self._bias[some]
            scores[..., some] = linear(x, weights[some].float(), bias)
        return scores
