"""What llama-quantize's type rules ask of a model, from the keys of its GGUF.

As ``load_hparams`` of llama.cpp's ``src/llama-model.cpp`` and ``load_arch_hparams`` of
``src/models/*.cpp`` read them (as pinned in ``vendor/manifest.toml``), with the limits beyond which
llama.cpp aborts.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from quantkit.core.errors import GGUFError
from quantkit.core.profiles import load_profile
from quantkit.families.model import Facts

# LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS of llama.cpp's src/llama-hparams.h, and its integers.
MOST_LAYERS, MOST_EXPERTS, _MOST = 512, 1024, 2**32 - 1
# Files of tensors alone: what loads them reads no hyperparameters.
_WITHOUT_KEYS = {"clip"}
# The layers by which llama.cpp takes a model for LLM_TYPE_70B, whatever its size.
_LAYERS_OF_70B = {"llama": 80, "llama-embed": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
_LLAMA = {"llama", "llama-embed"}
# Architectures in which one expert is none.
_ONE_IS_NONE = {"hunyuan-dense", "hunyuan_vl"}


@cache
def known_architectures() -> frozenset[str]:
    """The architectures that the pinned llama.cpp knows, by their names in GGUF."""
    return frozenset(load_profile("architectures.toml")["architectures"])


def facts_of(arch: str, keys: Mapping[str, Any]) -> Facts:
    """The facts of a model.

    Args:
        arch: its architecture in GGUF.
        keys: its metadata by full names, such as ``llama.block_count``; arrays are sequences.

    Raises:
        GGUFError: a key is absent, of another type, or beyond what llama.cpp takes.

    """
    if arch in _WITHOUT_KEYS:
        return Facts(n_layers=0)
    n_layers = _number(keys, f"{arch}.block_count", 1, MOST_LAYERS)
    n_nextn = _number(keys, f"{arch}.nextn_predict_layers", 0, n_layers, default=0)
    n_experts = _number(keys, f"{arch}.expert_count", 0, MOST_EXPERTS, default=0)
    if arch in _ONE_IS_NONE and n_experts == 1:
        n_experts = 0
    else:
        _require_routing(arch, keys, n_layers, n_experts)
    heads = _each(keys, f"{arch}.attention.head_count", n_layers, 0)[0]
    kv_heads = _each(keys, f"{arch}.attention.head_count_kv", n_layers, heads)[0]
    is_70b = n_layers - n_nextn == _LAYERS_OF_70B.get(arch)
    if arch in _LLAMA:
        is_70b = is_70b and n_experts != 8 and heads != kv_heads
    return Facts(
        _layers_run(arch, keys, n_layers, n_nextn),
        n_experts,
        heads // kv_heads if kv_heads else 0,
        is_70b,
    )


def _layers_run(arch: str, keys: Mapping[str, Any], n_layers: int, n_nextn: int) -> int:
    """The layers that llama.cpp counts: some architectures run more than they have."""
    own = n_layers - n_nextn
    if arch == "graniteswitch":  # a layer that chooses adapters
        return own + 1
    if arch == "nanbeige":
        most = MOST_LAYERS // max(1, own)
        loops = _number(keys, "nanbeige.num_loops", 1, most, default=1)
        return n_layers if loops == 1 else own * loops
    return n_layers


def _require_routing(arch: str, keys: Mapping[str, Any], n_layers: int, n_experts: int) -> None:
    """Refuse numbers of experts and groups at which llama.cpp aborts."""
    used = max(_each(keys, f"{arch}.expert_used_count", n_layers, 0))
    groups = _number(keys, f"{arch}.expert_group_count", 0, _MOST, default=0)
    of_groups = _number(keys, f"{arch}.expert_group_used_count", 0, _MOST, default=0)
    routes = (0 < used <= n_experts and groups < n_experts) if n_experts else used == groups == 0
    if groups > 1:
        routes = routes and n_experts % groups == 0 and 0 < of_groups < groups
    if not routes:
        raise GGUFError(
            f"The GGUF's {arch}.expert_count is {n_experts}, of which {used} are used, in {groups} "
            f"groups, of which {of_groups} are: llama.cpp aborts on that; convert it again with a "
            "current converter."
        )


def _number(
    keys: Mapping[str, Any], key: str, least: int, most: int, default: int | None = None
) -> int:
    if key not in keys:
        if default is None:
            raise GGUFError(f"The GGUF has no {key}; convert it again with a current converter.")
        return default
    return _bounded(keys[key], key, least, most)


def _each(keys: Mapping[str, Any], key: str, n_layers: int, default: int) -> list[int]:
    """Numbers of all layers, of which there may be one for all. The first counts for the rules."""
    value = keys.get(key, default)
    if not isinstance(value, list | tuple):
        return [_bounded(value, key, 0, _MOST)] * n_layers
    if len(value) != n_layers:
        raise GGUFError(
            f"The GGUF's {key} has {len(value)} numbers for {n_layers} layers; convert it again "
            "with a current converter."
        )
    return [_bounded(number, key, 0, _MOST) for number in value]


def _bounded(value: Any, key: str, least: int, most: int) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise GGUFError(
            f"The GGUF's {key} is {value!r}, not a number from {least} to {most}; convert it again "
            "with a current converter."
        )
    return int(value)
