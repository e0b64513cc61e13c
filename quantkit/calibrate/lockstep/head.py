"""The matrix that gives every token its score, some rows of it at a time.

It is the largest of many models: 2.5 GB in float32 for 152,000 tokens of 4,096 numbers.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from quantkit.calibrate.lockstep.parameters import Parameters

_BLOCK = 64 * 2**20  # bytes of rows in float32


class Head:
    """Stands in for a model's output embeddings, a plain matrix.

    Its rows are read again for every chunk, which takes a small part of the time of the product
    with them. From the Hub, or for a GPU, they are read once and kept as they are stored.
    """

    def __init__(self, name: str, module: nn.Linear, parameters: Parameters) -> None:
        self._name = name
        self._module = module
        self._parameters = parameters
        self._kept: Tensor | None = None
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
            self._kept = self._bias = None

        return undo

    def load(self) -> None:
        """Read what is not read block by block, unless that is done.

        Raises:
            CheckpointError: it is missing, or cannot be read.

        """
        weight, bias = f"{self._name}.weight", f"{self._name}.bias"
        if self._module.bias is not None and self._bias is None:
            [self._bias] = self._parameters.load([bias]).values()
        if self._kept is None:
            if not self._parameters.has_rows(weight):
                [self._kept] = self._parameters.load([weight]).values()
            elif not self._parameters.are_at_hand:
                self._kept = self._parameters.rows(weight, 0, self._module.out_features)

    def _scores(self, x: Tensor) -> Tensor:
        weight, count = f"{self._name}.weight", self._module.out_features
        scores = torch.empty(*x.shape[:-1], count, device=x.device)
        step = max(1, _BLOCK // (4 * self._module.in_features))
        for first in range(0, count, step):
            some = slice(first, min(first + step, count))
            if self._kept is None:
                rows = self._parameters.rows(weight, first, some.stop - first)
            else:
                rows = self._kept[some]
            bias = None if self._bias is None else self._bias[some]
            scores[..., some] = linear(x, rows.float(), bias)
        return scores
