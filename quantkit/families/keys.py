"""Metadata of a GGUF as bytes, and the keys that say how a decoder computes.

The keys and their order are those of ``conversion/base.py`` and ``conversion/llama.py`` of
llama.cpp.
"""

import math
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, TypeAlias

from quantkit.core.errors import CheckpointError
from quantkit.core.printable import quoted
from quantkit.families.model import Hyperparameters, KeyValue, Rope
from quantkit.families.rope import yarn_magnitude


class Kind(IntEnum):
    """GGUF's types of values, which gguf-py calls ``GGUFValueType``; to import that takes long."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_Said: TypeAlias = tuple[str, Any, Kind]  # a key without its architecture, and what it says


def decoder_keys(arch: str, hparams: Hyperparameters) -> tuple[KeyValue, ...]:
    """The architecture's numbers, in the converter's order."""
    said = [
        ("block_count", hparams.num_hidden_layers, Kind.UINT32),
        ("context_length", hparams.max_position_embeddings, Kind.UINT32),
        ("embedding_length", hparams.hidden_size, Kind.UINT32),
        ("feed_forward_length", hparams.intermediate_size, Kind.UINT32),
        ("attention.head_count", hparams.num_attention_heads, Kind.UINT32),
        ("attention.head_count_kv", hparams.num_key_value_heads, Kind.UINT32),
        *_rope_scaling(hparams.rope),
        ("rope.freq_base", hparams.rope.theta, Kind.FLOAT32),
        ("attention.layer_norm_rms_epsilon", hparams.rms_norm_eps, Kind.FLOAT32),
    ]
    if hparams.num_local_experts:
        said.append(("expert_count", hparams.num_local_experts, Kind.UINT32))
        said.append(("expert_used_count", hparams.num_experts_per_tok, Kind.UINT32))
    if hparams.states_head_dim:
        said.append(("attention.key_length", hparams.head_dim, Kind.UINT32))
        said.append(("attention.value_length", hparams.head_dim, Kind.UINT32))
    said.append(("vocab_size", hparams.vocab_size, Kind.UINT32))
    said.append(("rope.dimension_count", hparams.head_dim, Kind.UINT32))
    return tuple(pack_checked("config.json", f"{arch}.{key}", *value) for key, *value in said)


def _rope_scaling(rope: Rope) -> Iterator[_Said]:
    usual = 1.0  # what llama.cpp multiplies sine and cosine by of its own accord
    if rope.form:
        yield "rope.scaling.type", rope.form, Kind.STRING
        if rope.factor is not None:
            yield "rope.scaling.factor", rope.factor, Kind.FLOAT32
        if rope.original_context is not None:
            yield "rope.scaling.original_context_length", rope.original_context, Kind.UINT32
    if rope.form == "yarn":
        assert rope.factor is not None  # noqa: S101 - yarn has one
        usual = yarn_magnitude(rope.factor)
        # As the converter writes them; llama.cpp's architecture llama reads none of them.
        scaling = rope.scaling
        attention = scaling.get("attention_factor", scaling.get("attn_factor"))
        for value, key in (
            (scaling.get("extrapolation_factor"), "yarn_ext_factor"),
            (attention, "yarn_attn_factor"),
            (scaling.get("beta_fast"), "yarn_beta_fast"),
            (scaling.get("beta_slow"), "yarn_beta_slow"),
        ):
            if value is not None:
                yield f"rope.scaling.{key}", value, Kind.FLOAT32
    if not math.isclose(rope.magnitude, usual, rel_tol=1e-7):
        yield "rope.scaling.attn_factor", rope.magnitude / usual, Kind.FLOAT32


def pack_checked(
    origin: str, key: str, value: Any, kind: IntEnum, items: IntEnum | None = None
) -> KeyValue:
    """A metadata entry, packed.

    Args:
        origin: the file or folder that the value came from, for people.
        key: of the entry.
        value: of the entry.
        kind: as for `pack`.
        items: as for `pack`.

    Raises:
        CheckpointError: the value is not of its type.

    """
    try:
        return packed_entry(key, value, kind, items)
    except (TypeError, ValueError, OverflowError, struct.error):
        raise CheckpointError(
            f"{origin} gives {key} as {quoted(value)}, which GGUF cannot hold as {kind.name}; "
            "correct it in the model card, config.json or generation_config.json."
        ) from None


def packed_entry(key: str, value: Any, kind: IntEnum, items: IntEnum | None = None) -> KeyValue:
    """A metadata entry; as for `pack`, of which nothing is checked."""
    return KeyValue(key, pack(key, value, kind, items))


def pack(key: str, value: Any, kind: IntEnum, items: IntEnum | None = None) -> bytes:
    """A metadata entry as bytes: key, type, value, little-endian.

    Args:
        key: of the entry.
        value: of the entry.
        kind: its type: a `Kind`, or gguf-py's of the same name and number.
        items: of an array, the type of its items; None where they tell.

    Raises:
        TypeError, ValueError, OverflowError, struct.error: the value is not of its type.

    """
    if kind != Kind.ARRAY:
        return _string(key) + struct.pack("<i", kind) + _scalar(kind, value)
    if items is None:
        items = Kind.UINT8 if isinstance(value, bytes) else _kind_of(value[0])
    head = _string(key) + struct.pack("<iiQ", kind, items, len(value))
    code = _CODES.get(items.name)
    if code is None:
        return head + b"".join(_string(item) for item in value)
    return head + struct.pack(f"<{len(value)}{code}", *value)


def _kind_of(item: Any) -> IntEnum:
    """The type that gguf-py gives a value."""
    from gguf import GGUFValueType

    kind: IntEnum = GGUFValueType.get_type(item)
    return kind


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
