"""A GPTQ folder, whoever wrote it, as dequantized rows."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.folder import Checkpoint
from quantkit.core.errors import CheckpointError
from quantkit.core.tensors import FLOAT_BYTES, SourceTensor
from quantkit.formats.bnb.reader import read_bytes
from quantkit.formats.dequantized import Dequantized
from quantkit.formats.gptq.packing import PARTS, Packed, packed_shapes, unpack

_WEIGHT = "weight"
_BITS = (2, 3, 4, 8)


def open_artifact(stored: Checkpoint) -> Dequantized:
    """Its weights under the names they had before, as float32.

    Raises:
        CheckpointError: it is not in AutoGPTQ's first format, or a layer lacks a tensor or has
            one that does not fit.

    """
    bits, group_size = _settings(stored)
    tensors: dict[str, SourceTensor] = {}
    packed: dict[str, dict[str, SourceTensor]] = {}
    for name, tensor in stored.tensors.items():
        module, _, part = name.rpartition(".")
        if part == PARTS[0]:
            rows, words = tensor.shape[-1], tensor.shape[0]
            shape = (rows, words * 32 // bits)
            parts = _parts_of(stored.tensors, module, shape, bits, group_size)
            weight = f"{module}.{_WEIGHT}"
            packed[weight] = parts
            size = shape[0] * shape[1] * FLOAT_BYTES["F32"]
            tensors[weight] = replace(tensor, name=weight, dtype="F32", shape=shape, n_bytes=size)
        elif tensor.dtype in FLOAT_BYTES and f"{module}.{PARTS[0]}" not in stored.tensors:
            tensors[name] = tensor
        elif part == "bias" and tensor.dtype in FLOAT_BYTES:
            # AutoGPTQ itself gives every layer a bias, of zeros where the model has none.
            if read_bytes(tensor).any():
                tensors[name] = tensor
        elif part not in PARTS:
            raise CheckpointError(
                f"{name} in {tensor.file} is {tensor.dtype}, which has no place in a GPTQ folder; "
                "build or copy it again."
            )
    latest: dict[str, Packed] = {}  # slabs of one matrix follow each other

    def read_rows(name: str, first: int, count: int) -> NDArray[np.uint8]:
        if name not in packed:
            source = tensors[name]
            width = source.row_bytes
            return read_bytes(source, first * width, (first + count) * width)
        if name not in latest:
            latest.clear()
            latest[name] = _load(packed[name])
        return unpack(latest[name], bits, first, count).reshape(-1).view(np.uint8)

    config = {k: v for k, v in stored.config.items() if k != "quantization_config"}
    return Dequantized(replace(stored, config=config, tensors=tensors), read_rows)


def _settings(stored: Checkpoint) -> tuple[int, int]:
    """Bits and group size."""
    config = stored.config["quantization_config"]
    bits, group_size = config.get("bits"), config.get("group_size", -1)
    if config.get("checkpoint_format", "gptq") != "gptq":
        raise CheckpointError(
            f"{stored.path} is in the GPTQ format {config['checkpoint_format']!r}; quantkit reads "
            "the first, 'gptq'."
        )
    if bits not in _BITS or not isinstance(group_size, int):
        raise CheckpointError(
            f"{stored.path}'s quantization_config says bits = {bits!r} and group_size = "
            f"{group_size!r}, which no GPTQ folder has; build or copy it again."
        )
    return bits, group_size


def _parts_of(
    tensors: Mapping[str, SourceTensor],
    module: str,
    shape: tuple[int, int],
    bits: int,
    group_size: int,
) -> dict[str, SourceTensor]:
    parts = {}
    for part, (dtype, wanted) in packed_shapes(shape, bits, group_size).items():
        tensor = tensors.get(f"{module}.{part}")
        if tensor is None or tensor.dtype != dtype or tensor.shape != wanted:
            raise CheckpointError(
                f"{module}.{part} is not there or does not fit {module}.qweight in "
                f"{tensors[f'{module}.qweight'].file}; build or copy the folder again."
            )
        parts[part] = tensor
    return parts


def _load(parts: Mapping[str, SourceTensor]) -> Packed:
    words = {part: read_bytes(tensor) for part, tensor in parts.items()}
    return Packed(
        words["qweight"].view("<i4").reshape(parts["qweight"].shape),
        words["qzeros"].view("<i4").reshape(parts["qzeros"].shape),
        words["scales"].view("<f2").reshape(parts["scales"].shape),
        words["g_idx"].view("<i4"),
    )
