"""Experts of the classes of transformers that do not ask for a function to run them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from quantkit.calibration.lockstep.experts import Call, Experts, Meet


class _Step3p7(Experts):
    def name_into(self) -> tuple[str, ...]:
        return ("gate_up_proj",)

    def is_transposed(self, _name: str) -> bool:
        return False

    def multiply(self, _name: str, x: Tensor, weight: Tensor, _expert: int) -> Tensor:
        return linear(x, weight)

    def gate(self, made: Sequence[Tensor]) -> Tensor:
        result: Tensor = self.module._apply_gate(*made)
        return result

    def finish(self, made: Tensor) -> Tensor:
        return made


class _LongcatFlash(_Step3p7):
    """Those chosen beyond the last that has matrices give what they get."""

    def count_experts(self) -> int:
        count: int = self.module.num_routed_experts
        return count

    def gate(self, made: Sequence[Tensor]) -> Tensor:
        gate, up = made[0].chunk(2, dim=-1)
        result: Tensor = self.module.act_fn(gate) * up
        return result

    def add_rest(self, calls: Sequence[Call], results: Sequence[Tensor]) -> None:
        for call, result in zip(calls, results, strict=True):
            for expert in range(self.count, self.module.total_experts):
                token, place = torch.where(call.index == expert)
                weights = call.weights[token, place, None]
                result.index_add_(0, token, call.hidden[token] * weights)


class _Dbrx(_Step3p7):
    """The matrices of all experts are one below the other, and the last one is transposed."""

    down = "mlp.w2"

    def name_into(self) -> tuple[str, ...]:
        return ("mlp.w1", "mlp.v1")

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.matrices = dict.fromkeys(self.matrices, self.count)

    def stand_in(self, meet: Meet) -> Callable[..., Tensor]:
        def forward(hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
            flat = hidden.reshape(-1, hidden.shape[-1])
            return meet(flat, index, weights).view(len(hidden), -1, hidden.shape[-1])

        return forward

    def is_transposed(self, name: str) -> bool:
        return name == self.down

    def multiply(self, name: str, x: Tensor, weight: Tensor, _expert: int) -> Tensor:
        return x.matmul(weight if name == self.down else weight.T)

    def gate(self, made: Sequence[Tensor]) -> Tensor:
        gate, up = made
        result: Tensor = self.module.mlp.activation_fn(gate) * up
        return result


class _Llama4(_Step3p7):
    """A whole mixture: its experts alone are given every token, those not chosen as zeros."""

    down = "experts.down_proj"
    are_weighed_first = True

    def name_into(self) -> tuple[str, ...]:
        return ("experts.gate_up_proj",)

    def stand_in(self, meet: Meet) -> Callable[..., tuple[Tensor, Tensor]]:
        module = self.module

        def forward(hidden: Tensor) -> tuple[Tensor, Tensor]:
            hidden = hidden.reshape(-1, module.hidden_dim)
            scores, logits = module.router(hidden)
            index = logits.topk(module.top_k, dim=1).indices
            routed = meet(hidden, index, scores.gather(1, index))
            return module.shared_expert(hidden) + routed, logits

        return forward

    def is_transposed(self, _name: str) -> bool:
        return True

    def multiply(self, _name: str, x: Tensor, weight: Tensor, _expert: int) -> Tensor:
        return x @ weight

    def gate(self, made: Sequence[Tensor]) -> Tensor:
        gate, up = made[0].chunk(2, dim=-1)
        result: Tensor = up * self.module.experts.act_fn(gate)
        return result


class _JetMoe(_Step3p7):
    """A whole mixture: its router has sorted the tokens by their experts."""

    down = "output_linear.weight"

    def count_experts(self) -> int:
        count: int = self.module.router.num_experts
        return count

    def name_into(self) -> tuple[str, ...]:
        return ("input_linear.weight",)

    def stand_in(self, meet: Meet) -> Callable[..., Tensor]:
        module = self.module

        def forward(hidden: Tensor) -> Tensor:
            flat = hidden.reshape(-1, hidden.shape[-1])
            order, _, gates, sizes, _ = module.router(flat)
            index, weights = torch.empty_like(order), torch.empty_like(gates)
            index[order] = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(index)
            weights[order] = gates
            made = meet(flat, index.view(len(flat), -1), weights.view(len(flat), -1))
            return made.view(hidden.shape) + module.bias

        return forward

    def gate(self, made: Sequence[Tensor]) -> Tensor:
        gate, up = made[0].chunk(2, dim=-1)
        result: Tensor = self.module.activation(gate) * up
        return result


class _JetMoeMatrices(_Step3p7):
    """One matrix per expert, as JetMoe's attention has them. A call is sorted by expert already."""

    are_alone = True

    def __init__(self, module: Any) -> None:
        self.module = module
        self.count = len(module.weight)
        self.into = ("weight",)
        self.matrices = {"weight": self.count}

    def stand_in(self, meet: Meet) -> Callable[..., Tensor]:
        return lambda x, sizes: meet(x, torch.tensor(sizes))


# By name of the class, because the modules of all models would have to be imported otherwise. The
# mixture comes before what it holds.
KINDS: Mapping[str, Callable[[Any], Experts]] = {
    "Step3p7Experts": _Step3p7,
    "LongcatFlashExperts": _LongcatFlash,
    "DbrxExperts": _Dbrx,
    "Llama4TextMoe": _Llama4,
    "JetMoeMoE": _JetMoe,
    "JetMoeParallelExperts": _JetMoeMatrices,
}


def find_experts(parts: Mapping[str, nn.Module]) -> dict[str, Experts]:
    """Those of some modules, by name, whose experts are run one matrix at a time."""
    found: dict[str, Experts] = {}
    for name, module in parts.items():
        asks = all(hasattr(module, own) for own in ("has_gate", "is_transposed", "_apply_gate"))
        kind = Experts if asks else KINDS.get(type(module).__name__)
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        if kind is not None and not is_inside and next(module.parameters(), None) is not None:
            found[name] = kind(module)
    return found
