"""The matrix that gives every token its score, some rows of it at a time.

It is the largest of many models: 2.5 GB in float32 for 152,000 tokens of 4,096 numbers.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from quantkit.calibration.lockstep.parameters import Parameters

# (which rows, inputs, gradients of their scores, the rows)
SeeScores: TypeAlias = Callable[[slice, Tensor, Tensor, Tensor], None]

_BLOCK = 64 * 2**20  # bytes of rows in float32


class Head:
    """Stands in for a model's output embeddings, a plain matrix.

    Its rows are read again for every chunk, which takes a small part of the time of the product
    with them. From the Hub, or for a GPU, they are read once and kept as they are stored.
    """

    def __init__(
        self,
        name: str,
        module: nn.Linear,
        parameters: Parameters,
        seer: Callable[[], SeeScores] = lambda: _see_nothing,
    ) -> None:
        """Stand in for a module.

        ``seer`` gives, to the chunk that asks, what is to see the gradients of its scores.
        """
        self._name = name
        self._module = module
        self._parameters = parameters
        self._seer = seer
        self._kept: Tensor | None = None
        self._bias: Tensor | None = None

    def put(self, enter: Callable[[], None]) -> Callable[[], None]:
        """Have the module's calls come here, after ``enter``; the result ends that.

        ``enter`` sees to it that `load` was called.
        """

        def forward(x: Tensor) -> Tensor:
            enter()
            scores: Tensor = _Product.apply(x, self, self._seer())
            return scores

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

    def scores(self, x: Tensor) -> Tensor:
        """The product with inputs, shape (..., columns)."""
        scores = torch.empty(*x.shape[:-1], self._module.out_features, device=x.device)
        for some, rows in self._blocks():
            bias = None if self._bias is None else self._bias[some]
            scores[..., some] = linear(x, rows, bias)
        return scores

    def back(self, x: Tensor, gradient: Tensor, see: SeeScores) -> Tensor:
        """The gradient of the inputs, from that of their scores."""
        found = torch.zeros_like(x)
        for some, rows in self._blocks():
            found += gradient[..., some] @ rows
            see(some, x, gradient[..., some], rows)
        return found

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, some at a time, in float32."""
        weight, count = f"{self._name}.weight", self._module.out_features
        step = max(1, _BLOCK // (4 * self._module.in_features))
        for first in range(0, count, step):
            some = slice(first, min(first + step, count))
            if self._kept is None:
                rows = self._parameters.rows(weight, first, some.stop - first)
            else:
                rows = self._kept[some]
            yield some, rows.float()


class _Product(torch.autograd.Function):  # type: ignore[misc] # torch gives it no type
    """The product with a head's rows, which are read again for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Head, see: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.head, ctx.see = head, see
        ctx.save_for_backward(x)
        return head.scores(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return ctx.head.back(x, gradients[0], ctx.see), None, None


def _see_nothing(_some: slice, _x: Tensor, _gradient: Tensor, _rows: Tensor) -> None:
    pass
