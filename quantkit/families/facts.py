"""What type rules ask of a model, read from a GGUF's keys."""

from collections.abc import Mapping
from typing import Any

from quantkit.families.model import Facts


def facts_of(arch: str, keys: Mapping[str, Any]) -> Facts:
    """Facts of a model."""

    def first(key: str, default: Any) -> int:
        value = keys.get(f"{arch}.{key}", default)
        return int(value[0] if isinstance(value, list) else value)

    heads = first("attention.head_count", 0)
    kv = first("attention.head_count_kv", heads)
    layers = first("block_count", 0)
    gqa = heads // kv if kv else 0
    experts = first("expert_count", 0)
    large = layers == 80 and (arch == "qwen2" or (arch == "llama" and gqa > 1 and experts != 8))
    return Facts(layers, experts, gqa, large)
