"""What stays as it is in folders for transformers: floats, in the dtype of the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from quantkit.core.tensors import TORCH_NAMES, Bytes, SourceTensor, named_dtype
from quantkit.encodings.encoding import Encoding
from quantkit.formats.folder import Part
from quantkit.formats.safetensors import ITEM_BYTES, StoredTensor

if TYPE_CHECKING:
    import torch


def model_dtype(config: Mapping[str, Any], tensors: Mapping[str, SourceTensor]) -> str:
    """The dtype that transformers loads a checkpoint in: config.json's, or that of its weights."""
    stored = (t.dtype for t in tensors.values() if t.dtype in TORCH_NAMES)
    return named_dtype(config) or next(stored)


def to_torch(raw: Bytes, dtype: str, columns: int) -> "torch.Tensor":
    """Little-endian floats as rows of a tensor, without a copy where they are writable."""
    import torch

    writable = raw if raw.flags.writeable else raw.copy()
    return torch.from_numpy(writable).view(getattr(torch, TORCH_NAMES[dtype])).view(-1, columns)


def to_bytes(tensor: "torch.Tensor") -> Bytes:
    """The bytes of a tensor, 1-D."""
    import torch

    data: Bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return data


@dataclass(frozen=True, slots=True)
class Plain:
    """A tensor that stays as it is, in the model's dtype."""

    dtype: str

    @property
    def encoding(self) -> Encoding:
        """The floats' name."""
        return Encoding(self.dtype, -1, 1, ITEM_BYTES[self.dtype])

    def parts(self, name: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The tensor itself."""
        return (Part(StoredTensor(name, self.dtype, shape), 1, ITEM_BYTES[self.dtype]),)

    def encode(self, raw: Bytes, dtype: str, columns: int) -> list[Bytes]:
        """The floats, rounded to the model's dtype as torch does.

        Raises:
            OverflowError: a weight is beyond its range.

        """
        if dtype == self.dtype:
            return [raw]
        return [to_bytes(cast(to_torch(raw, dtype, columns), self.dtype))]

    def complete(
        self, name: str, shape: tuple[int, ...], scratch: Mapping[str, Bytes]
    ) -> dict[str, Bytes]:
        """Nothing is left to do."""
        del name, shape, scratch
        return {}


def cast(weights: "torch.Tensor", dtype: str) -> "torch.Tensor":
    """Weights in a dtype.

    Raises:
        OverflowError: one is beyond its range.

    """
    import torch

    wanted = getattr(torch, TORCH_NAMES[dtype])
    if weights.dtype == wanted:
        return weights
    made = weights.to(wanted)
    if not isfinite(made.abs().max().item()):
        raise OverflowError(f"the weights are too large for {wanted}")
    return made
