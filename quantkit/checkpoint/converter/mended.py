"""A header that the converter described, with other values of some keys."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantkit.checkpoint.gguf import Header
from quantkit.families.keys import Kind, pack
from quantkit.families.model import KeyValue

# Of the values that are lists: how a GGUF stores their items.
_ITEMS = {
    "tokenizer.ggml.tokens": Kind.STRING,
    "tokenizer.ggml.scores": Kind.FLOAT32,
    "tokenizer.ggml.token_type": Kind.INT32,
}


def with_keys(header: Header, keys: Mapping[str, Any]) -> Header:
    """A header with other values of some keys; new ones come after all that are there."""
    if not keys:
        return header
    packed = {key: KeyValue(key, _packed(key, value)) for key, value in keys.items()}
    there = {entry.key for entry in header.entries}
    entries: Sequence[KeyValue] = [packed.get(entry.key, entry) for entry in header.entries]
    new = [entry for key, entry in packed.items() if key not in there]
    return replace(header, metadata={**header.metadata, **keys}, entries=(*entries, *new))


def _packed(key: str, value: bool | float | list[Any]) -> bytes:
    if isinstance(value, list):
        return pack(key, value, Kind.ARRAY, _ITEMS[key])
    if isinstance(value, bool):
        return pack(key, value, Kind.BOOL)
    return pack(key, value, Kind.FLOAT32 if isinstance(value, float) else Kind.UINT32)
