"""Seeing what goes into the matrices of a layer, whatever module multiplies by them."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from quantkit.core.errors import CalibrationError


class Watcher(Protocol):
    """Sees what goes into the matrices of a model. Several threads call it at once."""

    def observe(
        self, parameter: str, expert: int | None, chunk: int | None, x: Tensor, share: float = 1.0
    ) -> None:
        """Take in inputs of a matrix, shape (tokens, columns).

        Args:
            parameter: its name.
            expert: which of the matrices in that parameter, if there are several.
            chunk: whose tokens they are; None for those of several, in the order of the chunks.
            x: the inputs.
            share: how much a token of them counts.

        """


class Replacer(Protocol):
    """Makes other matrices of those that a layer multiplies by, with which the run goes on.

    What comes later is computed from what was replaced before, within a layer too. It is called by
    one thread, in the order in which the model comes to its matrices.
    """

    def wants(self, parameter: str) -> bool:
        """Whether the matrices of a parameter are to be replaced."""

    def take_in(self, inputs: Iterable[tuple[Tensor, float]], columns: int, what: str) -> None:
        """Take in all inputs of the matrices that are replaced until the next call.

        Args:
            inputs: of shape (tokens, columns), each with how much a token of it counts. There may
                be none, of an expert that no token goes to.
            columns: of the matrices.
            what: the parameter that is replaced first.

        """

    def replace(self, parameter: str, expert: int | None, matrix: Tensor) -> Tensor:
        """Another matrix, (rows, columns), for one whose inputs have been taken in."""


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
        prepare: Callable[[str, Tensor, Tensor], None] | None = None,
    ) -> None:
        """Watch.

        Args:
            matrices: what is looked for.
            see: gets name, expert, inputs and results of a product.
            alter: gives other inputs instead.
            prepare: called before a product with a matrix that is a whole parameter: its name, the
                inputs and the matrix, (rows, columns), which it may write over.

        """
        super().__init__()
        self._matrices = matrices
        self._see = see
        self._alter = alter
        self._prepare = prepare

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
        if found is not None and found[1] is None and self._prepare is not None:
            self._prepare(found[0], x, matrix if func is linear else matrix.T)
        result = func(*args, **(kwargs or {}))
        if found is not None:
            self._see(*found, x, result)
        return result


def are_all_finite(values: Tensor) -> bool:
    """Whether no number among these is NaN or infinite."""
    # A sum is cheaper to look at, and not finite if anything in it is not.
    return bool(torch.isfinite(values.sum()) or torch.isfinite(values).all())


def require_finite(values: Any, what: str) -> None:
    """Refuse activations that nothing can be computed with.

    Raises:
        CalibrationError: one is NaN or infinite.

    """
    if isinstance(values, tuple | list):
        for value in values:
            require_finite(value, what)
    elif isinstance(values, Tensor) and values.is_floating_point() and not are_all_finite(values):
        raise CalibrationError(
            f"The activations are not finite in {what}; a weight before it is damaged or huge, or "
            "the model does not fit its config.json. Download it again."
        )
