"""Experts run one matrix at a time: what goes into them is brought together, of all chunks.

The module of experts stays where it is; what is called in its place hands in what it was called
with, and gives back what the experts made of it (see ``dispatch``). The arithmetic is the module's
own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

Meet = Callable[..., Tensor]  # hands in a call of one chunk, and returns what was made of it


@dataclass(frozen=True, slots=True)
class Call:
    """What a chunk comes with to its experts.

    ``hidden`` are their inputs, (tokens, hidden); ``index`` the experts chosen for each token and
    ``weights`` theirs, (tokens, k); ``scores`` the router's for all experts, None if nobody asks.
    """

    hidden: Tensor
    index: Tensor
    weights: Tensor
    scores: Tensor | None = None


class Experts:
    """The experts of a module that asks for a function to run them, as most do.

    Each has a matrix, or several, for what comes in, a gate or an activation, and one for what
    goes out. ``matrices`` says how many matrices each of the module's parameters holds; ``into``
    are those for what comes in, ``down`` is the other one. A chunk's call is the hidden states,
    (tokens, hidden), the experts chosen for each token and their weights, (tokens, k).
    """

    down = "down_proj"
    are_weighed_first = False  # whether the weights are for what comes in, not for what goes out
    are_alone = False  # whether each is a matrix, its own rows being put together before

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

    def put(self, meet: Meet) -> Callable[[], None]:
        """Have the module's calls go elsewhere; the result ends that."""
        self.module.forward = self.stand_in(meet)
        return lambda: delattr(self.module, "forward")

    def stand_in(self, meet: Meet) -> Callable[..., Any]:
        """What is called instead of the module."""
        return meet

    def is_transposed(self, _name: str) -> bool:
        """Whether a parameter's matrices have their inputs along the first axis."""
        transposed: bool = self.module.is_transposed
        return transposed

    def multiply(self, name: str, x: Tensor, weight: Tensor, expert: int) -> Tensor:
        """The product with a matrix, and its bias."""
        module = self.module
        bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
        if not self.is_transposed(name):
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

    def add_rest(self, calls: Sequence[Call], results: Sequence[Tensor]) -> None:
        """Add what is chosen like an expert and has no matrices."""


def len_of(module: nn.Module, name: str) -> int:
    """How many matrices a parameter of three axes holds."""
    owner, _, own = name.rpartition(".")
    return len(getattr(module.get_submodule(owner), own))
