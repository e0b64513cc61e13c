"""Metadata of a GGUF as bytes, and the keys that say how a decoder computes.

The keys and their order are those of ``conversion/base.py`` and ``conversion/llama.py`` of
llama.cpp.
"""

import math
import struct
from typing import TYPE_CHECKING, Any

from quantkit.core.errors import CheckpointError
from quantkit.core.printable import quoted
from quantkit.families.model import Hyperparameters, KeyValue, Rope
from quantkit.families.rope import yarn_magnitude

if TYPE_CHECKING:
    from gguf import GGUFValue, GGUFWriter


def decoder_keys(arch: str, hparams: Hyperparameters) -> tuple[KeyValue, ...]:
    """The architecture's numbers, in the converter's order."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path=None, arch=arch)
    own = set(writer.kv_data[0])  # general.architecture
    writer.add_block_count(hparams.num_hidden_layers)
    writer.add_context_length(hparams.max_position_embeddings)
    writer.add_embedding_length(hparams.hidden_size)
    writer.add_feed_forward_length(hparams.intermediate_size)
    writer.add_head_count(hparams.num_attention_heads)
    writer.add_head_count_kv(hparams.num_key_value_heads)
    _add_rope_scaling(writer, hparams.rope)
    writer.add_rope_freq_base(hparams.rope.theta)
    writer.add_layer_norm_rms_eps(hparams.rms_norm_eps)
    if hparams.num_local_experts:
        writer.add_expert_count(hparams.num_local_experts)
        writer.add_expert_used_count(hparams.num_experts_per_tok)
    if hparams.states_head_dim:
        writer.add_key_length(hparams.head_dim)
        writer.add_value_length(hparams.head_dim)
    writer.add_vocab_size(hparams.vocab_size)
    writer.add_rope_dimension_count(hparams.head_dim)
    found = writer.kv_data[0].items()
    return tuple(pack_checked("config.json", key, value) for key, value in found if key not in own)


def _add_rope_scaling(writer: "GGUFWriter", rope: Rope) -> None:
    from gguf import RopeScalingType

    usual = 1.0  # what llama.cpp multiplies sine and cosine by of its own accord
    if rope.form:
        writer.add_rope_scaling_type(RopeScalingType(rope.form))
        if rope.factor is not None:
            writer.add_rope_scaling_factor(rope.factor)
        if rope.original_context is not None:
            writer.add_rope_scaling_orig_ctx_len(rope.original_context)
    if rope.form == "yarn":
        assert rope.factor is not None  # noqa: S101 - yarn has one
        usual = yarn_magnitude(rope.factor)
        # As the converter writes them; llama.cpp's architecture llama reads none of them.
        scaling = rope.scaling
        attention = scaling.get("attention_factor", scaling.get("attn_factor"))
        for value, add in (
            (scaling.get("extrapolation_factor"), writer.add_rope_scaling_yarn_ext_factor),
            (attention, writer.add_rope_scaling_yarn_attn_factor),
            (scaling.get("beta_fast"), writer.add_rope_scaling_yarn_beta_fast),
            (scaling.get("beta_slow"), writer.add_rope_scaling_yarn_beta_slow),
        ):
            if value is not None:
                add(value)
    if not math.isclose(rope.magnitude, usual, rel_tol=1e-7):
        writer.add_rope_scaling_attn_factors(rope.magnitude / usual)


def pack_checked(origin: str, key: str, entry: "GGUFValue") -> KeyValue:
    """A metadata entry, packed.

    Args:
        origin: the file or folder that the value came from, for people.
        key: of the entry.
        entry: its value and type.

    Raises:
        CheckpointError: the value is not of its type.

    """
    try:
        return KeyValue(key, pack(key, entry))
    except (TypeError, ValueError, OverflowError, struct.error):
        raise CheckpointError(
            f"{origin} gives {key} as {quoted(entry.value)}, which GGUF cannot hold as "
            f"{entry.type.name}; correct it in the model card, config.json or "
            "generation_config.json."
        ) from None


def pack(key: str, entry: "GGUFValue") -> bytes:
    """A metadata entry as bytes: key, type, value, little-endian.

    Raises:
        TypeError, ValueError, OverflowError, struct.error: the value is not of its type.

    """
    from gguf import GGUFValueType

    if entry.type != GGUFValueType.ARRAY:
        return _string(key) + struct.pack("<i", entry.type) + _scalar(entry.type, entry.value)
    items = entry.value
    kind = entry.sub_type
    if kind is None:
        kind = GGUFValueType.UINT8 if isinstance(items, bytes) else GGUFValueType.get_type(items[0])
    head = _string(key) + struct.pack("<iiQ", entry.type, kind, len(items))
    code = _CODES.get(kind.name)
    if code is None:
        return head + b"".join(_string(item) for item in items)
    return head + struct.pack(f"<{len(items)}{code}", *items)


# struct codes of the plain GGUF value types.
_CODES = {
    "UINT8": "B",
    "INT8": "b",
    "UINT16": "H",
    "INT16": "h",
    "UINT32": "I",
    "INT32": "i",
    "FLOAT32": "f",
    "BOOL": "?",
    "UINT64": "Q",
    "INT64": "q",
    "FLOAT64": "d",
}


def _scalar(kind: Any, value: Any) -> bytes:
    code = _CODES.get(kind.name)
    return _string(value) if code is None else struct.pack(f"<{code}", value)


def _string(text: str | bytes) -> bytes:
    data = text.encode("utf-8") if isinstance(text, str) else text
    if not isinstance(data, bytes | bytearray):
        raise TypeError(f"{text!r} is not a text")  # bytes(2) would be two zeros
    return struct.pack("<Q", len(data)) + data
