"""Models of real sizes, from their configs alone."""

from typing import Any

from quantkit.families import find_family
from quantkit.families.model import Decoder
from tests.random_checkpoints import config_of


def model_of(family: str, **config: Any) -> Decoder:
    """The model that ``config_of``'s config makes with these changes."""
    changed = config_of(family, **config)
    return find_family(changed).describe(changed, ())


MIXTRAL_8X22B = {
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "num_hidden_layers": 56,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
LARGE_MODELS: dict[str, Decoder] = {
    "Mixtral-8x22B": model_of("mixtral", **MIXTRAL_8X22B),
    "Mistral-22B": model_of("mistral", **MIXTRAL_8X22B),
    # Half the experts of Mixtral-8x7B: some rules ask for 8, some for 4 or more.
    "Mixtral-4x7B": model_of(
        "mixtral",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
        num_local_experts=4,
    ),
    "Llama-3-70B": model_of(
        "llama",
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
    # No grouped-query attention.
    "Llama-2-7B": model_of(
        "llama",
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
    ),
    # 80 layers without it, so not what llama.cpp takes for 70B.
    "Llama-65B": model_of(
        "llama",
        hidden_size=8192,
        intermediate_size=22016,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=64,
        vocab_size=32000,
    ),
    # Tied embeddings, and rows of 576 and 1536: blocks of 256 fit only some.
    "SmolLM2-135M": model_of(
        "llama",
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
}
