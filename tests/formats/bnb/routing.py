"""Which experts a mixture takes, and a model that is told to take the same.

Where two experts are as good as each other, how a processor rounds decides between them, and then
the logits of two models that are the same have little in common. With the same experts they have.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

# By how much the chances of other experts may exceed those of the ones that were taken. Measured:
# 0.003 at most.
TIE = 0.05

Routed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What a router of transformers 5 returns: logits, weights and experts, each by token."""


@dataclass
class Agreement:
    """How often a model would have taken the same experts by itself, of how many times."""

    same: int = 0
    of: int = 0
    worst: float = 0.0
    """By how much the chances of the experts that it would have taken exceeded the others'."""

    def check(self, decisions: int) -> None:
        """So many decisions were compared, nearly all are the same, and the rest were ties."""
        assert self.of == decisions
        assert self.same >= 0.9 * self.of
        assert self.worst < TIE


@dataclass
class Choices:
    """The experts that each layer's router took, in the order of the layers: (tokens, experts)."""

    experts: list[torch.Tensor] = field(default_factory=list)


@contextmanager
def noting(model: Any) -> Iterator[Choices]:
    """The experts that a model takes inside the block."""
    choices = Choices()

    def note(_layer: int, output: Routed) -> None:
        choices.experts.append(output[2])

    with _hooked(model, note):
        yield choices


@contextmanager
def following(model: Any, choices: Choices) -> Iterator[Agreement]:
    """Have a model take those experts inside the block, with weights of its own."""
    agreement = Agreement()

    def follow(layer: int, output: Routed) -> Routed:
        logits, _, own = output
        experts = choices.experts[layer]
        chances = logits.float().softmax(-1)
        weights = chances.gather(-1, experts)
        same = (own.sort().values == experts.sort().values).all(-1)
        excess = chances.gather(-1, own).sum(-1) / weights.sum(-1) - 1
        agreement.same += int(same.sum())
        agreement.of += same.numel()
        agreement.worst = max(agreement.worst, float(excess.max()))
        return logits, weights / weights.sum(-1, keepdim=True), experts

    with _hooked(model, follow):
        yield agreement


@contextmanager
def _hooked(model: Any, act: Callable[[int, Routed], Routed | None]) -> Iterator[None]:
    routers = [module for name, module in model.named_modules() if name.endswith(".gate")]
    assert routers

    def hook(layer: int) -> Any:
        return lambda _module, _inputs, output: act(layer, output)

    handles = [router.register_forward_hook(hook(n)) for n, router in enumerate(routers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
