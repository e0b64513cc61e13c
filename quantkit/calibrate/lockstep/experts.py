"""Experts run one matrix at a time: what goes into them is brought together, of all chunks.

The module of experts stays where it is; what is called in its place hands in what it was called
with, and gives back what the experts made of it. The arithmetic is the module's own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Call = tuple[Tensor, ...]
Meet = Callable[..., Tensor]  # hands in a call of one chunk, and returns what was made of it
Read = Callable[[str, int], Tensor]
See = Callable[[str, int, Tensor], None]
Alter = Callable[[int, Tensor], Tensor]


class Experts:
    """The experts of a module that asks for a function to run them, as most do.

    Each has a matrix, or several, for what comes in, a gate or an activation, and one for what
    goes out. ``matrices`` says how many matrices each of the module's parameters holds; ``into``
    are those for what comes in, ``down`` is the other one. A chunk's call is the hidden states,
    (tokens, hidden), the experts chosen for each token and their weights, (tokens, k).
    """

    down = "down_proj"
    are_weighed_first = False  # whether the weights are for what comes in, not for what goes out

    def __init__(self, module: Any) -> None:
        self.module = module
        self.count = self.count_experts()
        self.into = self.name_into()
        self.matrices = {name: len_of(module, name) for name in (*self.into, self.down)}

    def count_experts(self) -> int:
        """How many have matrices."""
        count: int = self.module.num_experts
        return count

    def name_into(self) -> tuple[str, ...]:
        """The parameters for what comes in."""
        return ("gate_up_proj" if self.module.has_gate else "up_proj",)

    @property
    def routed(self) -> str | None:
        """The parameter whose counts say where tokens went; None if none does."""
        return self.into[0]

    def put(self, meet: Meet) -> Callable[[], None]:
        """Have the module's calls go elsewhere; the result ends that."""
        self.module.forward = self.stand_in(meet)
        return lambda: delattr(self.module, "forward")

    def stand_in(self, meet: Meet) -> Callable[..., Any]:
        """What is called instead of the module."""
        return meet

    def multiply(self, name: str, x: Tensor, weight: Tensor, expert: int) -> Tensor:
        """The product with a matrix, and its bias."""
        module = self.module
        bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
        if not module.is_transposed:
            return linear(x, weight, bias)
        made = x @ weight
        return made if bias is None else made + bias

    def gate(self, made: Sequence[Tensor]) -> Tensor:
        """What the matrices in ``into`` made, put together."""
        module = self.module
        result: Tensor = module._apply_gate(*made) if module.has_gate else module.act_fn(*made)
        return result

    def finish(self, made: Tensor) -> Tensor:
        """What an expert gives, before it is weighed."""
        module = self.module
        result: Tensor = module.post_expert_norm(made) if module.has_post_expert_norm else made
        return result

    def run(
        self, calls: Sequence[Call], read: Read, see: See, alter: Alter | None = None
    ) -> list[Tensor]:
        """What the experts make of all chunks, with one matrix in memory.

        Expert by expert, as the modules' own forward adds them up.

        Args:
            calls: one per chunk.
            read: gives the matrix of a parameter and an expert.
            see: shown the inputs of each.
            alter: gives other inputs instead of a chunk's.

        """
        results = [torch.zeros_like(hidden) for hidden, _, _ in calls]
        for expert in range(self.count):
            batches = []
            for number, (_, index, _) in enumerate(calls):
                token, place = torch.where(index == expert)
                if len(token):
                    batches.append((number, token, place))
            if batches:
                self._run_one(expert, batches, calls, results, read, see, alter)
        self.add_rest(calls, results)
        return results

    def add_rest(self, calls: Sequence[Call], results: Sequence[Tensor]) -> None:
        """Add what is chosen like an expert and has no matrices."""

    def _run_one(
        self,
        expert: int,
        batches: Sequence[tuple[int, Tensor, Tensor]],
        calls: Sequence[Call],
        results: Sequence[Tensor],
        read: Read,
        see: See,
        alter: Alter | None,
    ) -> None:
        products: list[list[Tensor]] = [[] for _ in batches]
        inner = []
        for name in self.into:
            weight = read(name, expert)
            for (number, token, place), made in zip(batches, products, strict=True):
                hidden, _, weights = calls[number]
                x = hidden[token]
                if self.are_weighed_first:
                    x = x * weights[token, place, None]
                x = alter(number, x) if alter else x
                see(name, expert, x)
                made.append(self.multiply(name, x, weight, expert))
                if len(made) == len(self.into):
                    inner.append(self.gate(made))
                    made.clear()
        weight = read(self.down, expert)
        for (number, token, place), x in zip(batches, inner, strict=True):
            x = alter(number, x) if alter else x
            see(self.down, expert, x)
            made = self.finish(self.multiply(self.down, x, weight, expert))
            if not self.are_weighed_first:
                made = made * calls[number][2][token, place, None]
            results[number].index_add_(0, token, made.to(results[number].dtype))


def len_of(module: nn.Module, name: str) -> int:
    """How many matrices a parameter of three axes holds."""
    owner, _, own = name.rpartition(".")
    return len(getattr(module.get_submodule(owner), own))
