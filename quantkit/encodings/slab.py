"""A slab: source rows of one matrix, widened once for every encoding that is made of them."""

from collections.abc import Callable
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantkit.core.tensors import FLOAT_BYTES
from quantkit.encodings.widen import widen

# Bytes, their dtype and weights per block, to blocks in another order.
MakeTiles: TypeAlias = Callable[[NDArray[np.uint8], str, int], NDArray[np.float32]]


class Slab:
    """Rows as they are stored, and in the forms that kernels read.

    Args:
        raw: bytes, 1-D and contiguous, of whole rows, all finite.
        dtype: the safetensors name of what they hold: ``F32``, ``F16`` or ``BF16``.
        columns: weights per row.

    """

    def __init__(self, raw: NDArray[np.uint8], dtype: str, columns: int) -> None:
        self.raw = raw
        self.dtype = dtype
        self.columns = columns
        self._tiles: dict[int, NDArray[np.float32]] = {}

    @property
    def n_rows(self) -> int:
        """How many rows."""
        return self.raw.size // (self.columns * FLOAT_BYTES[self.dtype])

    @cached_property
    def rows(self) -> NDArray[np.float32]:
        """The weights, shape (rows, columns)."""
        return widen(self.raw, self.dtype).reshape(-1, self.columns)

    def tiles(self, width: int, make: MakeTiles) -> NDArray[np.float32]:
        """The weights in blocks of ``width``, sorted by ``make`` once, as its kernels read them."""
        if width not in self._tiles:
            self._tiles[width] = make(self.raw, self.dtype, width)
        return self._tiles[width]
