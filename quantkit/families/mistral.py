"""Mistral 7B, the dense 22B descendants of Mixtral, and their like: ``MistralForCausalLM``."""

from collections.abc import Collection, Mapping
from typing import Any

from quantkit.families.decoder import describe_decoder, gated_mlp
from quantkit.families.model import Decoder, Family

# What transformers' MistralConfig assumes where config.json is silent.
DEFAULTS = {
    "vocab_size": 32000,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
}


def describe(config: Mapping[str, Any], names: Collection[str]) -> Decoder:
    """The model that a Mistral config and its tensor names make."""
    return describe_decoder("mistral", config, names, DEFAULTS, gated_mlp)


FAMILY = Family("mistral", ("MistralForCausalLM", "MistralModel"), describe)
