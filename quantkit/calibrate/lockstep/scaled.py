"""Weights stored in eight bits with scales, as they are meant: FP8 by block, channel or matrix."""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

KIND = "F8_E4M3"
DTYPE = torch.float8_e4m3fn
# As DeepSeek's checkpoints, and compressed-tensors', call what a weight is multiplied by.
_ENDINGS = ("_scale_inv", "_scale")


def scale_of(name: str, names: Container[str]) -> str | None:
    """The tensor that holds the scales of another, None if there is none."""
    return next((name + ending for ending in _ENDINGS if name + ending in names), None)


def block_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block, where config.json says them."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return None
    match quantization.get("weight_block_size"):
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
        length, count = weights.shape[axis], scales.shape[axis]
        size = -(-length // count)
        if block is not None and count not in (1, length):
            size = block[axis]
        if -(-length // size) != count:
            raise ValueError(f"{count} scales for {length} weights in blocks of {size}")
        scales = scales.repeat_interleave(size, axis).narrow(axis, 0, length)
    return weights * scales
