"""What llama-quantize reads from a tensor's name: whether it may be quantized, and its category.

As ``tensor_allows_quantization`` and ``tensor_get_category`` in llama.cpp's ``src/llama-quant.cpp``
(as pinned in ``vendor/manifest.toml``) have it, for every architecture: parts of names that are
found anywhere in a name, in their order.
"""

import re
from functools import lru_cache
from typing import Literal, TypeAlias

from quantkit.families.model import Target

Category: TypeAlias = Literal[
    "output",
    "token_embd",
    "attn_qkv",
    "attn_kv_b",
    "attn_v",
    "attn_k",
    "attn_q",
    "attn_output",
    "ffn_up",
    "ffn_gate",
    "ffn_down",
    "other",
]

OUTPUT = "output.weight"
TOKEN_EMBD = "token_embd.weight"  # noqa: S105 - a tensor's name
PER_LAYER_TOKEN_EMBD = "per_layer_token_embd.weight"  # noqa: S105 - a tensor's name

# The first part that a name contains says its category.
_CATEGORIES: tuple[tuple[str, Category], ...] = (
    ("attn_qkv.weight", "attn_qkv"),
    ("attn_kv_b.weight", "attn_kv_b"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
# Categories that share the rules for attn_v, which rounding hurts most.
ATTN_V: frozenset[Category] = frozenset({"attn_v", "attn_qkv", "attn_kv_b"})

# Positions and token types of BERT.
_KEPT_NAMES = {"position_embd.weight", "token_types.weight"}
_KEPT = (
    "_norm.weight",
    "ffn_gate_inp.weight",  # the router
    "ffn_gate_tid2eid.weight",  # DeepSeek-V4: from tokens to experts, integers
    "altup",  # Gemma 3n
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",  # Mamba, Kimi
    "shortconv.conv.weight",
    "indexer.k_proj.weight",  # MiniMax
    "indexer.q_proj.weight",
    "time_mix_first.weight",  # RWKV
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",  # T5: relative positions
    ".position_embd",  # images
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",  # audio
    "mm.a.code_embd",
)
_KEPT_BY_ARCH = {
    "glm5-next": (
        "hc_",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
        "ssm_f_a.weight",
        "ssm_f_b.weight",
        "ssm_g_a.weight",
        "ssm_g_b.weight",
        "ssm_beta.weight",
        "attn_kv_a_mqa.weight",
        "attn_k_b.weight",
        "attn_v_b.weight",
    ),
}
_SUFFIX = b"weight"
# llama.cpp reads the number with sscanf, which takes white space and a sign and no more notice of
# the point behind it.
_LAYER = re.compile(r"blk\.\s*([+-]?\d+)", re.ASCII)
_MOST_NAMES = 2**14  # of which what was found is kept: every quant of a model asks the same


@lru_cache(maxsize=_MOST_NAMES)
def category_of(name: str) -> Category:
    """The category of a tensor, by which its encoding is chosen."""
    if name == OUTPUT:
        return "output"
    if name in (TOKEN_EMBD, PER_LAYER_TOKEN_EMBD):
        return "token_embd"
    return next((category for part, category in _CATEGORIES if part in name), "other")


def may_be_quantized(target: Target, arch: str) -> bool:
    """Whether a quant says a tensor's encoding; the others keep the one they are stored in.

    Args:
        target: the tensor; a matrix of one row counts as a vector, because GGUF drops its row.
        arch: the model's architecture in GGUF.

    """
    return _may_be_quantized(target.name, target.shape, arch)


@lru_cache(maxsize=_MOST_NAMES)
def _may_be_quantized(name: str, shape: tuple[int, ...], arch: str) -> bool:
    if n_dims(shape) < 2:
        return False
    raw = name.encode()
    # Of a name without "weight" C++ gives the same number as for one of five bytes minus six.
    if raw.rfind(_SUFFIX) != len(raw) - len(_SUFFIX):
        return False
    kept = _KEPT + _KEPT_BY_ARCH.get(arch, ())
    return name not in _KEPT_NAMES and not any(part in name for part in kept)


def n_dims(shape: tuple[int, ...]) -> int:
    """How many dimensions ggml sees: those before the first that is larger than 1 do not count."""
    return next((len(shape) - i for i, n in enumerate(shape) if n > 1), 1)


@lru_cache(maxsize=_MOST_NAMES)
def layer_of(name: str) -> int | None:
    """The layer that llama-quantize takes a tensor to be of; None where its name says none."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def place_of(name: str) -> tuple[int, bytes]:
    """What tensors are sorted by in a file that llama-quantize writes: layer, then name."""
    layer = layer_of(name)
    return (-1 if layer is None else layer, name.encode())
