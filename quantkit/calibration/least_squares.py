"""One gated feed-forward part fitted to given outputs by least squares, one matrix after another.

``y = D (silu(G x) * U x)`` is linear in D, whose normal equations are solved directly, and linear
in U, whose are solved by conjugate gradients, because they have as many unknowns as U has weights.
For G it is linear around where G is (Gauss-Newton); a step that makes the error larger is
shortened.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

_BATCH = 4096  # tokens at once
_RIDGE = 1e-3  # of D, a share of the mean diagonal
_DAMP = 1e-2  # of steps of U and G, likewise
_ITERATIONS = 8
_SHORTER = (1.0, 0.5, 0.25, 0.1)


@dataclass(frozen=True, slots=True)
class ExpertPart:
    """A gated feed-forward part: gate and up (neurons, hidden), down (hidden, neurons)."""

    gate: Tensor
    up: Tensor
    down: Tensor

    def inner(self, x: Tensor) -> Tensor:
        """What its neurons make of rows of inputs."""
        return silu(linear(x, self.gate)) * linear(x, self.up)

    def __call__(self, x: Tensor) -> Tensor:
        """Its outputs for rows of inputs."""
        return linear(self.inner(x), self.down)


class Inputs(Protocol):
    """Rows, (tokens, hidden), wherever they are."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Some of them."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs and wanted outputs, shape (tokens, hidden) each, and where to compute."""

    inputs: Inputs
    outputs: Tensor
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of batches on the device."""
        for start in range(0, len(self.inputs), _BATCH):
            cut = slice(start, start + _BATCH)
            yield self.inputs[cut].to(self.device), self.outputs[cut].to(self.device)

    def error(self, part: ExpertPart) -> float:
        """The squared error of a part's outputs over that of giving nothing."""
        wrong = sum(float((y - part(x)).square().sum()) for x, y in self)
        return wrong / max(sum(float(y.square().sum()) for _, y in self), 1e-30)


def fit(samples: Samples, part: ExpertPart, rounds: int) -> ExpertPart:
    """The part with D solved for, after so many rounds of U, G and D in turns."""
    part = _solve_down(samples, part)
    for _ in range(rounds):
        part = _solve_up(samples, part)
        part = _step_gate(samples, part)
        part = _solve_down(samples, part)
    return part


def _solve_down(samples: Samples, part: ExpertPart) -> ExpertPart:
    """Ridge regression of the outputs on what the neurons give."""
    neurons, hidden = part.up.shape
    moment = torch.zeros(neurons, neurons, device=samples.device)
    cross = torch.zeros(neurons, hidden, device=samples.device)
    for x, y in samples:
        inner = part.inner(x)
        moment.addmm_(inner.T, inner)
        cross.addmm_(inner.T, y)
    wide = moment.double()
    del moment
    wide.diagonal().add_(_RIDGE * float(wide.diagonal().mean()) + 1e-30)
    solution = torch.cholesky_solve(cross.double(), torch.linalg.cholesky(wide))
    return ExpertPart(part.gate, part.up, solution.T.float().contiguous())


def _solve_up(samples: Samples, part: ExpertPart) -> ExpertPart:
    """U by damped least squares from where it is; D and G are kept."""

    def factor(x: Tensor) -> Tensor:
        return silu(linear(x, part.gate))

    step = _step(samples, part, factor)
    return ExpertPart(part.gate, part.up + step, part.down)


def _step_gate(samples: Samples, part: ExpertPart) -> ExpertPart:
    """G by a damped Gauss-Newton step; D and U are kept."""

    def factor(x: Tensor) -> Tensor:
        z = linear(x, part.gate)
        on = torch.sigmoid(z)
        return on * (1 + z * (1 - on)) * linear(x, part.up)

    step = _step(samples, part, factor)
    before = samples.error(part)
    for share in _SHORTER:
        moved = ExpertPart(part.gate + share * step, part.up, part.down)
        if samples.error(moved) < before:
            return moved
    return part


def _step(samples: Samples, part: ExpertPart, factor: Callable[[Tensor], Tensor]) -> Tensor:
    """The change S of a matrix that best makes up for the error, where D (f(x) * S x) is added."""
    down = part.down
    right = torch.zeros_like(part.up)
    squares, inputs, count = 0.0, 0.0, 0
    for x, y in samples:
        f = factor(x)
        right += (((y - part(x)) @ down) * f).T @ x
        squares += float(f.square().sum())
        inputs += float(x.square().sum())
        count += f.numel()
    damp = _DAMP * squares / count * float(down.square().sum(0).mean()) * inputs / part.up.shape[1]

    def normal(step: Tensor) -> Tensor:
        total = damp * step
        for x, _ in samples:
            f = factor(x)
            total += ((linear(f * linear(x, step), down) @ down) * f).T @ x
        return total

    return _conjugate_gradients(normal, right)


def _conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """A few iterations towards the solution of a positive definite system (Hestenes, Stiefel)."""
    solution = torch.zeros_like(right)
    residual = direction = right
    square = float(residual.square().sum())
    for _ in range(_ITERATIONS):
        if square <= 0:
            break
        image = product(direction)
        length = square / float((direction * image).sum())
        solution = solution + length * direction
        residual = residual - length * image
        smaller = float(residual.square().sum())
        direction = residual + smaller / square * direction
        square = smaller
    return solution
