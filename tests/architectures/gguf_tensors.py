"""The tensors of a GGUF, read by quantkit's reader and dequantized here."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.gguf import read_header
from tests.architectures.unpack import E2M1, E4M3

Array = NDArray[Any]

_DTYPES: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I32": np.int32,
}
_VALUES = np.array(E2M1, np.float32)


class Tensors:
    """The tensors of a GGUF by name, and its keys."""

    def __init__(self, file: Path) -> None:
        self.header = read_header(file)
        self.keys = self.header.metadata
        self.raw = file.read_bytes()
        self.tensors = {tensor.name: tensor for tensor in self.header.tensors}

    def kind(self, name: str) -> str:
        return self.tensors[name].encoding.name

    def bits(self, name: str) -> Array:
        """What is stored: numbers of their size, of blocks the bytes."""
        tensor = self.tensors[name]
        start = self.header.data_offset + tensor.offset
        raw = self.raw[start : start + tensor.n_bytes]
        dtype = _DTYPES.get(tensor.encoding.name, np.uint8)
        return np.frombuffer(raw, dtype).reshape(*tensor.shape[:-1], -1)

    def values(self, name: str) -> Array:
        """Values of F32, F16, BF16, MXFP4 and NVFP4, as ggml reads their blocks."""
        bits = self.bits(name)
        if self.kind(name) in ("F32", "F16"):
            return bits.astype(np.float32)
        if self.kind(name) == "BF16":
            return (bits.astype(np.uint32) << 16).view(np.float32)
        shape = self.tensors[name].shape
        if self.kind(name) == "MXFP4":
            blocks = bits.reshape(-1, 17)
            scale = np.exp2(blocks[:, :1].astype(np.float32) - 127)
            codes = np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], 1)
        else:
            blocks = bits.reshape(-1, 36)
            scale = E4M3[blocks[:, :4]].reshape(-1, 4, 1)
            halves = blocks[:, 4:].reshape(-1, 4, 8)
            codes = np.concatenate([halves & 15, halves >> 4], 2)
        values: Array = _VALUES[codes] * scale
        return values.reshape(shape)
