"""GGUFs that are a header and a hole: real names and shapes at any size, no weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from tests.gguf_keys import add_key

Value: TypeAlias = int | float | bool | str | Sequence[int] | Sequence[float]

ALIGNMENT = 32


@dataclass(frozen=True)
class Header:
    """What a GGUF says before its weights.

    Attributes:
        arch: llama.cpp's name of the architecture.
        keys: metadata, the architecture's own without its name in front: ``block_count``. Whole
            numbers are stored as uint32, in lists as int32.
        tensors: shapes in GGUF's order, the length of a row first.
        types: a part of tensors' names, and the type of those that contain it; the first that
            fits counts. The rest are as the converter leaves them: F32 what has one dimension or is
            no weight, BF16 else.

    """

    arch: str
    keys: Mapping[str, Value]
    tensors: Mapping[str, tuple[int, ...]]
    types: Mapping[str, GGMLQuantizationType] = field(default_factory=dict)

    def type_of(self, name: str) -> GGMLQuantizationType:
        """The type in which a tensor is stored."""
        for part, kind in self.types.items():
            if part in name:
                return kind
        if len(self.tensors[name]) == 1 or not name.endswith(".weight"):
            return GGMLQuantizationType.F32
        return GGMLQuantizationType.BF16


def sparse_gguf(path: Path, header: Header) -> Path:
    """Write a GGUF of the size that it would have, with nothing in it but its header."""
    writer = GGUFWriter(path, header.arch)
    for name, value in header.keys.items():
        key = name if name.startswith(("general.", "clip.")) else f"{header.arch}.{name}"
        add_key(writer, key, value)
    weights = 0
    for name, shape in header.tensors.items():
        kind = header.type_of(name)
        n_bytes = bytes_of(shape, kind)
        weights += -(-n_bytes // ALIGNMENT) * ALIGNMENT
        # Shapes in numpy's order; what the dtype would say, the type says.
        writer.add_tensor_info(name, shape[::-1], np.dtype(np.float32), n_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        start = -(-file.seek(0, 2) // ALIGNMENT) * ALIGNMENT
        file.truncate(start + weights)
    return path


def bytes_of(shape: Sequence[int], kind: GGMLQuantizationType) -> int:
    """How long a tensor of this shape is."""
    block, n_bytes = GGML_QUANT_SIZES[kind]
    rows = 1
    for length in shape[1:]:
        rows *= length
    return shape[0] // block * n_bytes * rows
