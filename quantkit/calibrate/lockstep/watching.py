"""Seeing what goes into the matrices of a layer, whatever module multiplies by them."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from quantkit.core.errors import CalibrationError


class Watcher(Protocol):
    """Sees what goes into the matrices of a model. Several threads call it at once."""

    def observe(self, parameter: str, expert: int | None, chunk: int | None, x: Tensor) -> None:
        """Take in inputs of a matrix, shape (tokens, columns).

        Args:
            parameter: its name.
            expert: which of the matrices in that parameter, if there are several.
            chunk: whose tokens they are; None for those of several, in the order of the chunks.
            x: the inputs.

        """


class Matrices:
    """Finds out which parameter a product is with, by where its numbers lie."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._parameters: list[tuple[str, Tensor]] = []

    def put(self, parameters: Mapping[str, Tensor]) -> None:
        """Look for these from now on, and for no others."""
        placed = sorted((value.data_ptr(), name) for name, value in parameters.items())
        self._starts = [start for start, _ in placed]
        self._parameters = [(name, parameters[name]) for _, name in placed]

    def find(self, matrix: Tensor) -> tuple[str, int | None] | None:
        """The parameter of which this is all, or one expert's matrix, perhaps transposed."""
        address = matrix.data_ptr()
        if not (place := bisect_right(self._starts, address)):
            return None
        name, parameter = self._parameters[place - 1]
        if parameter.ndim == 2 and parameter.numel() == matrix.numel():
            return (name, None) if address == self._starts[place - 1] else None
        if parameter.ndim == 3 and parameter[0].numel() == matrix.numel():
            size = matrix.numel() * matrix.element_size()
            expert, rest = divmod(address - self._starts[place - 1], size)
            return (name, expert) if not rest and expert < len(parameter) else None
        return None


_WITH_A_MATRIX_SECOND = frozenset(
    {linear, torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}
)


class Watching(TorchFunctionMode):  # type: ignore[misc] # torch gives it no type
    """Within it, each product with one of some matrices is seen, in this thread.

    Not by the modules, because routers are seldom an ``nn.Linear``.
    """

    def __init__(
        self,
        matrices: Matrices,
        see: Callable[[str, int | None, Tensor, Tensor], None],
        alter: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """``see`` gets name, expert, inputs and results; ``alter`` gives other inputs instead."""
        super().__init__()
        self._matrices = matrices
        self._see = see
        self._alter = alter

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        place = 0
        if func is torch.addmm and len(args) > 2:  # transformers' Conv1D
            place = 1
        elif func not in _WITH_A_MATRIX_SECOND or len(args) < 2:
            return func(*args, **(kwargs or {}))
        x, matrix = args[place : place + 2]
        found = self._matrices.find(matrix) if matrix.ndim == 2 else None
        if found is not None and self._alter is not None:
            x = self._alter(x)
            args = (*args[:place], x, *args[place + 1 :])
        result = func(*args, **(kwargs or {}))
        if found is not None:
            self._see(*found, x, result)
        return result


def require_finite(values: Any, what: str) -> None:
    """Refuse activations that nothing can be computed with.

    Raises:
        CalibrationError: one is NaN or infinite.

    """
    if isinstance(values, tuple | list):
        for value in values:
            require_finite(value, what)
    # A sum is cheaper to look at, and not finite if anything in it is not.
    elif (
        isinstance(values, Tensor)
        and values.is_floating_point()
        and not torch.isfinite(values.sum())
        and not torch.isfinite(values).all()
    ):
        raise CalibrationError(
            f"The activations are not finite in {what}; a weight before it is damaged or huge, or "
            "the model does not fit its config.json. Download it again."
        )
