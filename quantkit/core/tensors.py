"""What a checkpoint's headers say about its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What weights are read, handed on and written as, 1-D. Its name alone, so that what only plans
# need not import numpy, which takes as long as `quantkit fit` to answer.
Bytes: TypeAlias = "NDArray[np.uint8]"

# Safetensors dtypes that hold plain floating-point weights, and their bytes per element.
FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# PyTorch's names of the same, which config.json has, too.
TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
DTYPES = {torch_name: name for name, torch_name in TORCH_NAMES.items()}


def named_dtype(config: Mapping[str, Any]) -> str | None:
    """The floats that config.json says a model is in; None where it says none of these."""
    named = config.get("dtype") or config.get("torch_dtype")
    return DTYPES.get(named) if isinstance(named, str) else None


def as_array(data: bytes) -> Bytes:
    """Bytes as those of tensors are handed on."""
    import numpy as np

    return np.frombuffer(data, np.uint8)


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor as it lies in a checkpoint file.

    ``dtype`` is safetensors' name for floats, which ggml shares, and ggml's for blocks of a GGUF.
    ``shape`` is row-major (rows, columns); ``offset`` is in bytes from the start of ``file``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    n_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: the last dimension. A number alone is a row."""
        if not self.shape:
            return self.n_bytes
        if self.dtype in FLOAT_BYTES:
            return self.shape[-1] * FLOAT_BYTES[self.dtype]
        return self.n_bytes // prod(self.shape[:-1])

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)
