"""Llama 1 to 3 and what shares their layout: ``LlamaForCausalLM``."""

from collections.abc import Collection, Mapping
from typing import Any

from quantkit.families.decoder import describe_decoder, gated_mlp
from quantkit.families.model import Decoder, Family

# What transformers' LlamaConfig assumes where config.json is silent. It also fills in head_dim,
# so the converter writes the head lengths even where the config does not state them.
DEFAULTS = {
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "assume_head_dim": True,
}


def describe(config: Mapping[str, Any], names: Collection[str]) -> Decoder:
    """The model that a Llama config and its tensor names make."""
    return describe_decoder("llama", config, names, DEFAULTS, gated_mlp)


FAMILY = Family("llama", ("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"), describe)
