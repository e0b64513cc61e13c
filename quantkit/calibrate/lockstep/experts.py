"""Experts run one matrix at a time, through the place that transformers has for such a function."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

NAME = "quantkit"
_CALL = "_quantkit_call"
_BATCH = 1024  # tokens that an expert sees at once


def register() -> None:
    """Make ``experts_implementation="quantkit"`` known to transformers."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if NAME not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(NAME, _forward)


def _forward(module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """What a module of experts is called with goes to who put himself there."""
    result: Tensor = getattr(module, _CALL)(hidden, index, weights)
    return result


def put(module: nn.Module, call: Callable[..., Tensor]) -> Callable[[], None]:
    """Have a module's calls go elsewhere; the result ends that."""
    setattr(module, _CALL, call)
    return lambda: delattr(module, _CALL)


def is_streamed(module: nn.Module) -> bool:
    """Whether a module is one of experts that ask for the function to run them."""
    return all(hasattr(module, name) for name in ("has_gate", "is_transposed", "_apply_gate"))


def matrices(name: str, module: nn.Module) -> list[str]:
    """The names of the parameters that hold a matrix per expert."""
    return [f"{name}.{own}" for own in (_into(module), "down_proj")]


def _into(module: Any) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


def run(
    module: Any,
    calls: Sequence[tuple[Tensor, Tensor, Tensor]],
    read: Callable[[str, int], Tensor],
    see: Callable[[str, int, Tensor], None],
    alter: Callable[[int, Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """What the experts of a layer make of all chunks, with one matrix in memory.

    The arithmetic is that of the modules' own forward, "eager": expert by expert.

    Args:
        module: of the experts; its matrices are on the meta device, its biases loaded.
        calls: per chunk the inputs, (tokens, hidden), the experts chosen for each token and their
            weights, (tokens, k).
        read: gives the matrix of a parameter and an expert.
        see: shown the inputs of each.
        alter: gives other inputs instead of a chunk's.

    """
    results = [torch.zeros_like(hidden) for hidden, _, _ in calls]
    for expert in range(module.num_experts):
        batches = []
        for number, (_, index, _) in enumerate(calls):
            token, place = torch.where(index == expert)
            if len(token):
                batches.append((number, token, place))
        if not batches:
            continue
        into = _into(module)
        weight = read(into, expert)
        inner = []
        for number, token, _ in batches:
            x = calls[number][0][token]
            x = alter(number, x) if alter else x
            see(into, expert, x)
            made = _apply(module, into, x, weight, expert)
            inner.append(module._apply_gate(made) if module.has_gate else module.act_fn(made))
            del x, made
        weight = read("down_proj", expert)
        for (number, token, place), x in zip(batches, inner, strict=True):
            x = alter(number, x) if alter else x
            see("down_proj", expert, x)
            made = _apply(module, "down_proj", x, weight, expert)
            if module.has_post_expert_norm:
                made = module.post_expert_norm(made)
            made = made * calls[number][2][token, place, None]
            results[number].index_add_(0, token, made.to(results[number].dtype))
    return results


def _apply(module: Any, name: str, x: Tensor, weight: Tensor, expert: int) -> Tensor:
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    if not module.is_transposed:
        return linear(x, weight, bias)
    made = x @ weight
    return made if bias is None else made + bias
