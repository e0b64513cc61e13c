"""Safetensors files planned before a weight is read: shards, headers, offsets, index.

Spec: the README of huggingface/safetensors. Within a shard wide items come first, so that every
tensor is aligned for readers that map it; tensors whose length is known only at the end come last,
and the header has room for any length of theirs. So nothing else ever moves.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from quantkit.core.errors import PlanError
from quantkit.core.units import format_size

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8, "I8": 1, "U8": 1}
_ALIGNMENT = 8
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a safetensors file. The shape of a ``late`` one may still become smaller."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    late: bool = False

    @property
    def n_bytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file: its tensors in the order of their data, and where each starts."""

    name: str
    header: bytes
    tensors: tuple[StoredTensor, ...]
    offsets: tuple[int, ...]
    n_bytes: int


def place_shards(groups: Sequence[Sequence[StoredTensor]], shard_size: int) -> tuple[Shard, ...]:
    """Fill shards in order; the tensors of a group stay together.

    Args:
        groups: tensors that belong to each other, in the order of the model.
        shard_size: the most bytes of tensors per shard.

    Raises:
        PlanError: a group is larger than a shard.

    """
    shards: list[list[StoredTensor]] = [[]]
    filled = 0
    for group in groups:
        n_bytes = sum(tensor.n_bytes for tensor in group)
        if n_bytes > shard_size:
            raise PlanError(
                f"--shard-size is smaller than {group[0].name} ({format_size(n_bytes)}); use at "
                f"least --shard-size {n_bytes}."
            )
        filled += n_bytes
        if filled > shard_size:
            shards.append([])
            filled = n_bytes
        shards[-1].extend(group)
    if len(shards) == 1:
        return (place("model.safetensors", shards[0]),)
    count = f"{len(shards):05d}"
    return tuple(
        place(f"model-{number:05d}-of-{count}.safetensors", tensors)
        for number, tensors in enumerate(shards, 1)
    )


def place(name: str, tensors: Sequence[StoredTensor], header_bytes: int | None = None) -> Shard:
    """Place tensors in one file.

    Args:
        name: the file's.
        tensors: in any order.
        header_bytes: how long the header is, with padding, if that is settled already.

    """
    ordered = sorted(tensors, key=lambda tensor: (tensor.late, -ITEM_BYTES[tensor.dtype]))
    # Readers of PyTorch files look for this entry.
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, end = [], 0
    for tensor in ordered:
        starts.append(end)
        end += tensor.n_bytes
        table[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [starts[-1], end],
        }
    text = json.dumps(table, separators=(",", ":")).encode()
    padded = header_bytes or -(-(_LENGTH_BYTES + len(text)) // _ALIGNMENT) * _ALIGNMENT
    text = text.ljust(padded - _LENGTH_BYTES)
    header = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    offsets = tuple(len(header) + start for start in starts)
    return Shard(name, header, tuple(ordered), offsets, len(header) + end)


def write_index(shards: Sequence[Shard]) -> bytes:
    """The contents of ``model.safetensors.index.json``."""
    weight_map = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    total = sum(tensor.n_bytes for shard in shards for tensor in shard.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(index, indent=2) + "\n").encode()
