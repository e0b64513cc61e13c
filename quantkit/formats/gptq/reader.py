"""A GPTQ folder, whoever wrote it, as dequantized rows."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.core.documents import to_type
from quantkit.core.errors import CheckpointError
from quantkit.core.printable import quoted
from quantkit.core.tensors import FLOAT_BYTES, SourceTensor
from quantkit.formats.dequantized import Dequantized, read_bytes
from quantkit.formats.gptq.packing import Packed, unpack
from quantkit.formats.gptq.stored import PARTS, fits, packed_shapes

_WEIGHT = "weight"


class _Settings(msgspec.Struct, frozen=True):
    """What ``quantization_config`` must say; what else it says is not needed to read weights."""

    bits: Literal[2, 3, 4, 8]
    group_size: int = -1
    checkpoint_format: str | None = "gptq"


def open_artifact(stored: Checkpoint) -> Dequantized:
    """Its weights under the names they had before, as float32.

    Raises:
        CheckpointError: it is not in AutoGPTQ's first format, or a layer lacks a tensor or has
            one that does not fit.

    """
    bits, group_size = read_settings(stored)
    tensors: dict[str, SourceTensor] = {}
    packed: dict[str, dict[str, SourceTensor]] = {}
    for name, tensor in stored.tensors.items():
        module, _, part = name.rpartition(".")
        if part == PARTS[0]:
            shape = _shape_of(tensor, bits, group_size)
            parts = _parts_of(stored.tensors, module, shape, bits, group_size)
            weight = f"{module}.{_WEIGHT}"
            packed[weight] = parts
            size = shape[0] * shape[1] * FLOAT_BYTES["F32"]
            tensors[weight] = replace(tensor, name=weight, dtype="F32", shape=shape, n_bytes=size)
        elif not tensor.shape or not tensor.n_elements:
            raise CheckpointError(
                f"{quoted(name)} in {tensor.file} holds no numbers, or one without a shape; build "
                "or copy it again."
            )
        elif tensor.dtype in FLOAT_BYTES and f"{module}.{PARTS[0]}" not in stored.tensors:
            tensors[name] = tensor
        elif part == "bias" and tensor.dtype in FLOAT_BYTES:
            # AutoGPTQ itself gives every layer a bias, of zeros where the model has none.
            if read_bytes(tensor).any():
                tensors[name] = tensor
        elif part not in PARTS:
            raise CheckpointError(
                f"{quoted(name)} in {tensor.file} is {tensor.dtype}, which does not belong in a "
                "GPTQ folder; build or copy it again."
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


def packed_matrices(stored: Checkpoint, bits: int, group_size: int) -> dict[str, tuple[int, int]]:
    """The rows and columns of each quantized matrix, by the name ``MODULE.weight``.

    Raises:
        CheckpointError: one lacks a tensor or has one that does not fit.

    """
    found = {}
    for name, tensor in stored.tensors.items():
        module, _, part = name.rpartition(".")
        if part == PARTS[0]:
            shape = _shape_of(tensor, bits, group_size)
            _parts_of(stored.tensors, module, shape, bits, group_size)
            found[f"{module}.{_WEIGHT}"] = shape
    return found


def _shape_of(tensor: SourceTensor, bits: int, group_size: int) -> tuple[int, int]:
    words, rows = tensor.shape if len(tensor.shape) == 2 else (0, 0)
    shape = (rows, words * 32 // bits)
    if not min(shape) or words * 32 % bits or not fits(shape, group_size):
        raise CheckpointError(
            f"{quoted(tensor.name)} in {tensor.file} has the shape {quoted(tensor.shape)}, which "
            f"does not fit {bits} bits in groups of {group_size}; build or copy it again."
        )
    return shape


def read_settings(stored: Checkpoint) -> tuple[int, int]:
    """Bits and group size of a folder.

    Raises:
        CheckpointError: they are none that a GPTQ folder has, or it is not in the first format.

    """
    settings = to_type(
        stored.config["quantization_config"],
        _Settings,
        f"The quantization_config of {stored.path}",
        error=CheckpointError,
        fix="build or copy it again",
    )
    if settings.checkpoint_format not in (None, "gptq"):
        raise CheckpointError(
            f"{stored.path} is in the GPTQ format {quoted(settings.checkpoint_format)}; quantkit "
            "reads only 'gptq'."
        )
    if settings.group_size != -1 and settings.group_size < 1:
        raise CheckpointError(
            f"{stored.path} says group_size = {settings.group_size}, which no GPTQ folder has; "
            "build or copy it again."
        )
    return settings.bits, settings.group_size


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
                f"{quoted(f'{module}.{part}')} is missing or does not fit its qweight in "
                f"{tensors[f'{module}.qweight'].file}; build or copy the folder again."
            )
        parts[part] = tensor
    return parts


def _load(parts: Mapping[str, SourceTensor]) -> Packed:
    words = {part: read_bytes(tensor) for part, tensor in parts.items()}
    packed = Packed(
        words["qweight"].view("<i4").reshape(parts["qweight"].shape),
        words["qzeros"].view("<i4").reshape(parts["qzeros"].shape),
        words["scales"].view("<f2").reshape(parts["scales"].shape),
        words["g_idx"].view("<i4"),
    )
    groups = len(packed.scales)
    if packed.g_idx.min() < 0 or packed.g_idx.max() >= groups:
        raise CheckpointError(
            f"{quoted(parts['g_idx'].name)} in {parts['g_idx'].file} names groups outside its "
            f"{groups}; build or copy it again."
        )
    return packed
