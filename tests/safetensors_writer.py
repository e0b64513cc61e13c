"""Writes safetensors files and whole checkpoint folders for tests, byte by byte."""

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}


class Stored(NamedTuple):
    """A tensor as a file holds it; a plain (dtype, shape, bytes) tuple serves as well."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Array = NDArray[Any]
Tensor = Array | tuple[str, Sequence[int], bytes]


def to_bf16(values: Array) -> Stored:
    """Values rounded to the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.asarray(values, np.float32, order="C").view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40
    return tag("BF16", np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16))


def tag(dtype: str, bits: Array) -> Stored:
    """An array's bytes under a dtype that numpy lacks, such as BF16 for uint16 bits."""
    return Stored(dtype, bits.shape, bits.astype(bits.dtype.newbyteorder("<")).tobytes())


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to one file, in the order given, with the header padded as real files are."""
    stored = {name: _stored(tensor) for name, tensor in tensors.items()}
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape, data) in stored.items():
        begin, end = end, end + len(data)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in stored.values():
            file.write(tensor.data)


def write_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], shards: int = 1
) -> None:
    """Write config.json and the weights, as transformers names them: several shards get an index.

    The shards take the tensors in the order given, each about as many as the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        write_safetensors(folder / file, {n: tensors[n] for n in part}, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total_size = sum(len(_stored(tensor).data) for tensor in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _stored(tensor: Tensor) -> Stored:
    if isinstance(tensor, np.ndarray):
        return tag(_DTYPES[tensor.dtype.name], tensor)
    dtype, shape, data = tensor
    if dtype in ("F32", "F16", "BF16"):
        width = 4 if dtype == "F32" else 2
        assert len(data) == prod(shape) * width, "the bytes do not fit the shape"
    return Stored(dtype, tuple(shape), data)
