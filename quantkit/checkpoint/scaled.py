"""Weights stored in eight bits with scales, as they are meant: FP8 by block, channel or matrix."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.checkpoint.checkpoint import Checkpoint, RowReader
from quantkit.checkpoint.rows import open_rows
from quantkit.core.errors import CheckpointError
from quantkit.core.printable import quoted
from quantkit.core.tensors import FLOAT_BYTES, TORCH_NAMES, SourceTensor, named_dtype

KIND = "F8_E4M3"
DTYPE = torch.float8_e4m3fn
# As DeepSeek's checkpoints, and compressed-tensors', call what a weight is multiplied by.
_ENDINGS = ("_scale_inv", "_scale")
_FLOATS = {name: getattr(torch, torch_name) for name, torch_name in TORCH_NAMES.items()}


def scale_of(name: str, names: Container[str]) -> str | None:
    """The tensor that holds the scales of another, None if there is none."""
    return next((name + ending for ending in _ENDINGS if name + ending in names), None)


def block_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block, where config.json says them.

    DeepSeek's checkpoints have ``weight_block_size``, compressed-tensors' a ``block_structure``.
    """
    match config.get("quantization_config"):
        case {"weight_block_size": size}:
            return _as_block(size)
        case {"config_groups": {**groups}}:
            found = {_as_block(_structure(group)) for group in groups.values()} - {None}
            return found.pop() if len(found) == 1 else None
    return None


def _structure(group: Any) -> Any:
    match group:
        case {"weights": {"block_structure": size}}:
            return size
    return None


def _as_block(size: Any) -> tuple[int, int] | None:
    match size:
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    return None


def scaled(weights: Tensor, scales: Tensor, block: tuple[int, int] | None) -> Tensor:
    """Weights times the scale of the block that each is in; both float32.

    Args:
        weights: shape (..., rows, columns).
        scales: one, or one for each block.
        block: rows and columns of a block, of which the last may be cut off; None for as many as
            there are scales. One scale, or as many as rows or columns, need no block.

    Raises:
        ValueError: there are not as many scales as blocks.

    """
    if scales.numel() == 1:
        return weights * scales.view(())
    if scales.ndim < 2:
        scales = scales[:, None]
    for axis in (-2, -1):
        length = weights.shape[axis]
        size = _block_along(axis, length, scales.shape[axis], block)
        scales = scales.repeat_interleave(size, axis).narrow(axis, 0, length)
    return weights * scales


def _block_along(axis: int, length: int, count: int, block: tuple[int, int] | None) -> int:
    """How many weights along an axis share one of so many scales.

    Raises:
        ValueError: there are not as many scales as blocks.

    """
    size = -(-length // count)
    if block is not None and count not in (1, length):
        size = block[axis]
    if -(-length // size) != count:
        raise ValueError(f"{count} scales for {length} weights in blocks of {size}")
    return size


def as_meant(stored: Checkpoint) -> Checkpoint:
    """A checkpoint in FP8 as one of plain floats, whose rows are computed when they are read.

    Weights are multiplied by their scales in float32 and rounded once, to the dtype that
    config.json gives the model. One without FP8, or whose FP8 has no scales, is given back.

    Args:
        stored: with its tensors as they lie in files of this machine.

    Raises:
        CheckpointError: there are not as many scales as blocks.

    """
    tensors = stored.tensors
    scales = {
        name: scale
        for name, tensor in tensors.items()
        if tensor.dtype == KIND
        and len(tensor.shape) in (2, 3)
        and (scale := scale_of(name, tensors)) is not None
        and tensors[scale].dtype in _FLOATS
    }
    if not scales:
        return stored
    block = block_size(stored.config)
    matrices = {name: _Scaled.of(tensors[name], tensors[s], block) for name, s in scales.items()}
    modules = {name.rpartition(".")[0] for name in scales}
    dtype = named_dtype(stored.config) or "BF16"
    plain = {
        name: _as_floats(tensor, dtype) if name in scales else tensor
        for name, tensor in tensors.items()
        if not _is_scale(name, modules)
    }
    rows = _MeantRows(open_rows(stored), matrices, dtype)
    config = {k: v for k, v in stored.config.items() if k != "quantization_config"}
    return replace(stored, config=config, tensors=plain, read_rows=rows)


def _is_scale(name: str, modules: Container[str]) -> bool:
    """Whether a tensor is a scale of a module in FP8: of its weight, its inputs, its outputs."""
    module, _, own = name.rpartition(".")
    return module in modules and own.endswith(_ENDINGS)


def _as_floats(tensor: SourceTensor, dtype: str) -> SourceTensor:
    return replace(tensor, dtype=dtype, n_bytes=prod(tensor.shape) * FLOAT_BYTES[dtype])


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A matrix, or several of equal size, and the scales of its blocks.

    ``rows`` and ``columns`` are those of a matrix; ``tall`` and ``wide`` those of a block.
    """

    scale: SourceTensor
    rows: int
    columns: int
    tall: int
    wide: int

    @classmethod
    def of(
        cls, tensor: SourceTensor, scale: SourceTensor, block: tuple[int, int] | None
    ) -> "_Scaled":
        rows, columns = tensor.shape[-2:]
        shape = scale.shape if len(scale.shape) > 1 else (prod(scale.shape), 1)
        many = prod(tensor.shape[:-2])
        try:
            if prod(scale.shape) == 1:
                return cls(scale, rows, columns, rows, columns)
            if prod(shape[:-2]) != many:
                raise ValueError(f"scales of {prod(shape[:-2])} matrices for {many}")
            tall = _block_along(-2, rows, shape[-2], block)
            wide = _block_along(-1, columns, shape[-1], block)
        except ValueError as error:
            raise CheckpointError(
                f"{quoted(scale.name)} in {scale.file} does not fit what it scales: {error}; "
                "download the checkpoint again."
            ) from None
        return cls(scale, rows, columns, tall, wide)

    def spread(self, scales: Tensor, first: int, count: int) -> Tensor:
        """The scale of each weight in some rows, (count, columns) or one; ``scales`` are all."""
        if scales.numel() == 1:
            return scales.view(())
        per_matrix = -(-self.rows // self.tall)
        number = torch.arange(first, first + count)
        above = number // self.rows * per_matrix + number % self.rows // self.tall
        chosen = scales.view(-1, -(-self.columns // self.wide))[above]
        return chosen.repeat_interleave(self.wide, 1).narrow(1, 0, self.columns)


@dataclass(slots=True)
class _MeantRows:
    """Reads rows of floats, of FP8 times its scales. Keeps the scales that were used last."""

    read: RowReader
    matrices: Mapping[str, _Scaled]
    dtype: str
    latest: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, first: int, count: int) -> NDArray[np.uint8]:
        raw = self.read(name, first, count)
        matrix = self.matrices.get(name)
        if matrix is None:
            return raw
        weights = torch.from_numpy(raw).view(DTYPE).view(count, -1).float()
        weights *= matrix.spread(self._scales(matrix.scale), first, count)
        made: NDArray[np.uint8] = weights.to(_FLOATS[self.dtype]).view(-1).view(torch.uint8).numpy()
        return made

    def _scales(self, scale: SourceTensor) -> Tensor:
        if scale.name not in self.latest:
            raw = self.read(scale.name, 0, prod(scale.shape[:-1]))
            self.latest.clear()
            self.latest[scale.name] = torch.from_numpy(raw).view(_FLOATS[scale.dtype]).float()
        return self.latest[scale.name]
