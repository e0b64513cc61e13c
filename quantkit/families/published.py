"""The names that matrices have in published checkpoints, whichever layout they were read from."""

from quantkit.families.model import Target

_EXPERT_PARTS = {"ffn_gate_exps": "w1", "ffn_down_exps": "w2", "ffn_up_exps": "w3"}


def published_names(target: Target) -> tuple[str, ...]:
    """One name per matrix of a target; none for values that are computed from the config.

    A Mixtral whose experts are fused gets the names it is published under, one per expert, which
    every version of transformers knows.
    """
    if target.published:
        return target.published
    moe = f"model.layers.{target.layer}.block_sparse_moe"
    if target.role == "ffn_gate_inp":
        return (f"{moe}.gate.weight",)
    if part := _EXPERT_PARTS.get(target.role):
        return tuple(f"{moe}.experts.{e}.{part}.weight" for e in range(len(target.blocks)))
    return tuple(block.source for block in target.blocks)
