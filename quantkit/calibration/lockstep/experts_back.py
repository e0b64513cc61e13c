"""Gradients of a layer's experts, with the matrices of one in memory."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from quantkit.calibration.lockstep.experts import Call, Experts

# (chunk, parameter, expert, inputs, product, matrix)
See: TypeAlias = Callable[[int, str, int, Tensor, Tensor, Tensor], None]


def go_back(
    experts: Experts,
    calls: Sequence[Call],
    gradients: Sequence[Tensor],
    read: Callable[[str, int], Tensor],
    see: See,
) -> list[tuple[Tensor, Tensor]]:
    """The gradients of the experts' inputs and of their weights, of each chunk.

    Args:
        experts: of a layer.
        calls: what each chunk came with.
        gradients: of what the experts made of it, (tokens, hidden).
        read: gives the matrix of a parameter and an expert.
        see: shown, under autograd, the products of a chunk's tokens with each matrix.

    """
    found = [(torch.zeros_like(call.hidden), torch.zeros_like(call.weights)) for call in calls]
    with torch.enable_grad():
        for expert in range(experts.count):
            matrices: dict[str, Tensor] = {}
            for number, call in enumerate(calls):
                tokens, places = torch.where(call.index == expert)
                if not len(tokens):
                    continue
                for name in (*experts.into, experts.down):
                    if name not in matrices:
                        matrices[name] = read(name, expert)
                x = call.hidden[tokens].detach().requires_grad_()
                gates = call.weights[tokens, places].detach().requires_grad_()
                made = _run(experts, matrices, expert, x, gates, partial(see, number))
                made.backward(gradients[number][tokens])
                of_hidden, of_weights = found[number]
                of_hidden.index_add_(0, tokens, x.grad)
                of_weights[tokens, places] = gates.grad
        for call, gradient, (of_hidden, of_weights) in zip(calls, gradients, found, strict=True):
            _add_rest(experts, call, gradient, of_hidden, of_weights)
    return found


def _run(
    experts: Experts,
    matrices: Mapping[str, Tensor],
    expert: int,
    x: Tensor,
    gates: Tensor,
    see: Callable[[str, int, Tensor, Tensor, Tensor], None],
) -> Tensor:
    """What an expert makes of some tokens, weighed."""

    def multiply(name: str, x: Tensor) -> Tensor:
        made = experts.multiply(name, x, matrices[name], expert)
        matrix = matrices[name].T if experts.is_transposed(name) else matrices[name]
        see(name, expert, x, made, matrix)
        return made

    if experts.are_weighed_first:
        x = x * gates[:, None]
    inner = experts.gate([multiply(name, x) for name in experts.into])
    made = experts.finish(multiply(experts.down, inner))
    return made if experts.are_weighed_first else made * gates[:, None]


def _add_rest(
    experts: Experts, call: Call, gradient: Tensor, of_hidden: Tensor, of_weights: Tensor
) -> None:
    """Add the gradients of what is chosen like an expert and has no matrices."""
    hidden = call.hidden.detach().requires_grad_()
    weights = call.weights.detach().requires_grad_()
    result = torch.zeros_like(call.hidden)
    experts.add_rest([Call(hidden, call.index, weights)], [result])
    if result.requires_grad:
        result.backward(gradient)
        of_hidden.add_(hidden.grad)
        of_weights.add_(weights.grad)
