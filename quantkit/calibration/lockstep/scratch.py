"""What chunks leave behind within a layer, in files that nobody ever sees."""

import threading
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.core.writing import create


class Scratch:
    """Tensors by chunk, in mapped files that have no names any more: a kill leaves none.

    What is kept of all chunks at one place has one shape.
    """

    def __init__(self, folder: Path, chunks: int) -> None:
        self._folder = folder
        self._chunks = chunks
        self._lock = threading.Lock()
        self._number = 0
        self._arrays: dict[Hashable, list[NDArray[Any]]] = {}

    def keep(self, place: Hashable, chunk: int, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Write a chunk's tensors; the same, where they lie now.

        Raises:
            OSError: the disk is full.

        """
        with self._lock:
            if place not in self._arrays:
                self._arrays[place] = [
                    self._map((self._chunks, *tensor.shape), tensor.numpy().dtype)
                    for tensor in tensors
                ]
        kept = []
        for array, tensor in zip(self._arrays[place], tensors, strict=True):
            array[chunk] = tensor.numpy()
            kept.append(torch.from_numpy(array[chunk]))
        return tuple(kept)

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        """Float32 zeros of a shape."""
        return torch.from_numpy(self._map(shape, np.dtype(np.float32)))

    def drop(self, place: Hashable) -> None:
        """Let go of what was kept at a place."""
        self._arrays.pop(place, None)

    def _map(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        path = self._folder / f"within-{self._number}.f32"
        self._number += 1
        try:
            with create(path) as file:
                return np.memmap(file, dtype, "w+", shape=shape)
        finally:
            path.unlink(missing_ok=True)
