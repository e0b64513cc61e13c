"""How predictions bend with a matrix: squares of the gradients of its weights."""

import threading
from collections import defaultdict
from functools import partial
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Place: TypeAlias = tuple[str, int | None]  # a parameter, and which matrix of several

_AT_ONCE = 2**22  # elements of a matrix whose gradients are in memory at once


class Curvature:
    """What errors as large as matrices themselves would cost, by row, to second order, in nats.

    With labels drawn from the model's own predictions, the mean square of the gradient of a weight,
    over chunks of text, is its place on the diagonal of the Fisher information. An error E of a
    matrix, small and without pattern, then costs about half of the sum of that times E²: here, with
    the squares of the weights for E², for all tokens of all chunks together.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._costs: dict[Place, dict[int, NDArray[np.float64]]] = defaultdict(dict)

    def watch(self, chunk: int, place: Place, x: Tensor, out: Tensor, matrix: Tensor) -> None:
        """Take in a chunk's product with a matrix, when its gradient is known.

        Args:
            chunk: its number.
            place: of the matrix.
            x: the inputs, (..., columns).
            out: the product, (..., rows), under autograd.
            matrix: (rows, columns), or transposed.

        """
        if out.requires_grad:
            out.register_hook(partial(self.add, chunk, place, x.detach(), matrix=matrix))

    def add(self, chunk: int, place: Place, x: Tensor, gradient: Tensor, matrix: Tensor) -> None:
        """Take in inputs of a matrix and the gradient of what it makes of them."""
        x = x.reshape(-1, x.shape[-1])
        gradient = gradient.reshape(-1, gradient.shape[-1])
        if matrix.shape != (gradient.shape[1], x.shape[1]):
            matrix = matrix.T
        found = costs_of(x, gradient, matrix)
        with self._lock:
            chunks = self._costs[place]
            chunks[chunk] = chunks[chunk] + found if chunk in chunks else found

    def take(self) -> dict[Place, NDArray[np.float64]]:
        """What was found, by matrix, in the order of the chunks whoever came first."""
        costs, self._costs = self._costs, defaultdict(dict)
        return {place: _total(chunks) for place, chunks in costs.items()}


def costs_of(x: Tensor, gradient: Tensor, matrix: Tensor) -> NDArray[np.float64]:
    """Half the sum over columns of squared gradient times squared weight, by row.

    Args:
        x: (tokens, columns).
        gradient: of the product with the matrix, (tokens, rows).
        matrix: (rows, columns).

    """
    step = max(1, _AT_ONCE // matrix.shape[1])
    with torch.no_grad():
        parts = [
            (some.T @ x).mul_(rows).square_().sum(1)
            for some, rows in zip(gradient.split(step, 1), matrix.split(step), strict=True)
        ]
        found: NDArray[np.float64] = torch.cat(parts).double().cpu().numpy() / 2
    return found


def _total(chunks: dict[int, NDArray[np.float64]]) -> NDArray[np.float64]:
    *_, total = accumulate(chunks[chunk] for chunk in sorted(chunks))
    return total
