"""Weights stored as MXFP4, as gpt-oss is published: 32 numbers of four bits and a power of two.

The format is that of the OCP Microscaling Formats specification, version 1.0. Beside NAME's place
lie NAME_blocks and NAME_scales.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quantkit.core.errors import CheckpointError
from quantkit.core.printable import quoted

BLOCKS, SCALES = "_blocks", "_scales"
_LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # then the same below 0
_BIAS = 127  # of the exponents


def unpack(blocks: Tensor, scales: Tensor) -> Tensor:
    """The matrices of experts, float32, shape (experts, columns, rows).

    Args:
        blocks: two numbers per byte, the first in the lower half, uint8 of shape (experts, rows,
            blocks, bytes).
        scales: exponents, uint8 of shape (experts, rows, blocks).

    """
    levels = torch.tensor([*_LEVELS, *(-level for level in _LEVELS)], device=blocks.device)
    experts, rows, count, n_bytes = blocks.shape
    values = torch.empty(
        (experts, rows, count, 2 * n_bytes), dtype=torch.float32, device=blocks.device
    )
    exponents = scales.to(torch.int32)[..., None] - _BIAS
    values[..., 0::2] = torch.ldexp(levels[(blocks & 15).int()], exponents)
    values[..., 1::2] = torch.ldexp(levels[(blocks >> 4).int()], exponents)
    return values.view(experts, rows, -1).transpose(1, 2)


class Packed:
    """Stands where transformers' converters do in an `Origin`, for one parameter."""

    dtype = torch.uint8

    def __init__(self) -> None:
        self._read: dict[str, Callable[[], Tensor]] = {}

    def add_tensor(
        self, _parameter: str, _name: str, pattern: str, read: Callable[[], Tensor]
    ) -> None:
        """Take one of both tensors; ``pattern`` says which."""
        self._read[pattern] = read

    def convert(self, parameter: str, **_model: Any) -> dict[str, Tensor]:
        """The parameter by its name.

        Raises:
            CheckpointError: one of both tensors is missing, or they do not belong together.

        """
        for part in (BLOCKS, SCALES):
            if part not in self._read:
                raise CheckpointError(
                    f"The checkpoint lacks {quoted(parameter + part)}; download it again."
                )
        blocks, scales = self._read[BLOCKS](), self._read[SCALES]()
        # Scales of other shapes might broadcast, to weights that are wrong without a word.
        if blocks.dim() != 4 or blocks.shape[:-1] != scales.shape:
            raise CheckpointError(
                f"{quoted(parameter + BLOCKS)} has the shape {tuple(blocks.shape)} and its scales "
                f"{tuple(scales.shape)}, which is no MXFP4; download the checkpoint again."
            )
        return {parameter: unpack(blocks, scales)}
