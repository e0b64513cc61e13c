"""The activations of all chunks between two layers, in memory or in files, and safe on disk."""

import os
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import OutputError

_DTYPE = np.dtype("<f4")


class Activations:
    """Float32 arrays of one shape (chunks, context, width).

    ``hidden`` is what the next layer reads, ``out`` where it leaves its result, ``middle`` scratch
    space. Two files take turns to hold the result of the latest layer, so that a kill at any time
    leaves one that is whole. In memory ``out`` is ``hidden``, and a file is written per layer.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], *, spill: bool) -> None:
        self._folder = folder
        self._shape = shape
        self._spill = spill
        self._turn = 0
        self.hidden: NDArray[np.float32]
        self.middle: NDArray[np.float32]
        self.out: NDArray[np.float32]
        if not spill:
            self.hidden = self.out = np.empty(shape, _DTYPE)
            self.middle = np.empty(shape, _DTYPE)

    @property
    def n_bytes(self) -> int:
        """Bytes of one array."""
        return int(np.prod(self._shape)) * _DTYPE.itemsize

    def start(self, values: NDArray[np.float32]) -> None:
        """Begin with the embeddings."""
        if self._spill:
            self._open(1, "w+")
        self.hidden[:] = values

    def resume(self, layers: int) -> None:
        """Go on with what so many finished layers left.

        Raises:
            OutputError: the file is missing or of another size.

        """
        turn = (layers - 1) % 2
        path = self._file(turn)
        if not path.is_file() or path.stat().st_size != self.n_bytes:
            raise OutputError(f"{path} is missing or damaged; delete {self._folder} to start anew.")
        if self._spill:
            self._open(turn, "r+")
        else:
            self.hidden[:] = np.fromfile(path, _DTYPE).reshape(self._shape)
        self._turn = layers % 2

    def keep(self) -> NDArray[np.float32]:
        """A copy of what ``out`` holds now, where the other arrays are."""
        if not self._spill:
            return self.out.copy()
        copy: NDArray[np.float32] = np.memmap(
            self._folder / "kept.f32", _DTYPE, "w+", shape=self._shape
        )
        copy[:] = self.out
        return copy

    def commit(self) -> None:
        """What ``out`` holds is a layer's result: make it durable."""
        if self._spill:
            cast("np.memmap[Any, Any]", self.out).flush()
            return
        with self._file(self._turn).open("wb") as file:
            self.out.tofile(file)
            file.flush()
            os.fsync(file.fileno())

    def turn_over(self) -> None:
        """What was committed, and recorded as such, is the next layer's input."""
        if self._spill:
            self._open(self._turn, "r+")
        self._turn = 1 - self._turn

    def _open(self, turn: int, mode: Literal["r+", "w+"]) -> None:
        """Map the files: ``hidden`` is the one of ``turn``, ``out`` the other."""

        def mapped(name: Path, how: Literal["r+", "w+"]) -> NDArray[np.float32]:
            return np.memmap(name, _DTYPE, how, shape=self._shape)

        self.hidden = mapped(self._file(turn), mode)
        self.out = mapped(self._file(1 - turn), "w+")
        self.middle = mapped(self._folder / "middle.f32", "w+")

    def _file(self, turn: int) -> Path:
        return self._folder / f"states-{turn}.f32"
