"""Mixtral 8x7B and 8x22B: ``MixtralForCausalLM``, a router and N experts per layer.

Two layouts are read. Published checkpoints hold one matrix per expert and part,
``block_sparse_moe.experts.E.w1`` (gate), ``w2`` (down), ``w3`` (up). Newer tools save what
transformers 5 holds in memory: ``mlp.experts.gate_up_proj`` (experts, 2 * ffn, hidden), gate rows
first, and ``mlp.experts.down_proj`` (experts, hidden, ffn).
"""

from collections.abc import Collection, Mapping
from typing import Any

from quantkit.families.decoder import describe_decoder
from quantkit.families.model import Block, Decoder, Family, Hyperparameters, Target

# What transformers' MixtralConfig assumes where config.json is silent.
DEFAULTS = {
    "vocab_size": 32000,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def describe(config: Mapping[str, Any], names: Collection[str]) -> Decoder:
    """The model that a Mixtral config and its tensor names make."""
    return describe_decoder("mixtral", config, names, DEFAULTS, experts)


def experts(
    layer: int, hparams: Hyperparameters, names: Collection[str]
) -> tuple[dict[str, tuple[int, ...]], list[Target]]:
    """The router and the experts of one layer, from either layout."""
    count, wide, hidden = hparams.num_local_experts, hparams.intermediate_size, hparams.hidden_size
    at, blk = f"model.layers.{layer}", f"blk.{layer}"
    moe = next(
        (m for m in ("block_sparse_moe", "mlp") if f"{at}.{m}.gate.weight" in names),
        "block_sparse_moe",
    )
    gate = f"{at}.{moe}.gate.weight"
    gate_up, down = f"{at}.{moe}.experts.gate_up_proj", f"{at}.{moe}.experts.down_proj"
    parts = (
        ("ffn_gate_exps", "w1", (wide, hidden)),
        ("ffn_down_exps", "w2", (hidden, wide)),
        ("ffn_up_exps", "w3", (wide, hidden)),
    )
    sources: dict[str, tuple[int, ...]] = {gate: (count, hidden)}
    blocks: dict[str, list[Block]] = {}
    if gate_up in names or down in names:
        sources |= {gate_up: (count, 2 * wide, hidden), down: (count, hidden, wide)}
        blocks["w1"] = [Block(gate_up, 0, wide, e) for e in range(count)]
        blocks["w2"] = [Block(down, 0, hidden, e) for e in range(count)]
        blocks["w3"] = [Block(gate_up, wide, wide, e) for e in range(count)]
    else:
        for _, part, shape in parts:
            own = [f"{at}.{moe}.experts.{e}.{part}.weight" for e in range(count)]
            sources |= dict.fromkeys(own, shape)
            blocks[part] = [Block(source, 0, shape[0]) for source in own]
    router = Block(gate, 0, count)
    targets = [
        Target(f"{blk}.ffn_gate_inp.weight", "ffn_gate_inp", (count, hidden), layer, (router,))
    ]
    for role, part, shape in parts:
        whole = (count, *shape)
        targets.append(Target(f"{blk}.{role}.weight", role, whole, layer, tuple(blocks[part])))
    return sources, targets


FAMILY = Family("mixtral", ("MixtralForCausalLM", "MixtralModel"), describe)
