"""The activations of all chunks between two layers, in memory or in files, and safe on disk."""

import os
import zlib
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import OutputError
from quantkit.core.files import open_file
from quantkit.core.writing import create, is_own, open_to_resume

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
            self._open(1, anew=True)
        self.hidden[:] = values

    def resume(self, layers: int, crc: int) -> None:
        """Go on with what so many finished layers left.

        Raises:
            OutputError: the file is missing, or not of this size and CRC-32.

        """
        turn = (layers - 1) % 2
        path = self._file(turn)
        if not is_own(path) or path.stat().st_size != self.n_bytes:
            raise OutputError(f"{path} is missing or damaged; {self._anew}.")
        if self._spill:
            self._open(turn, anew=False)
        else:
            with open_file(path, error=OutputError, fix=self._anew, follow=False) as file:
                self.hidden[:] = np.fromfile(file, _DTYPE).reshape(self._shape)
        if zlib.crc32(self.hidden.data) != crc:
            raise OutputError(f"{path} is missing or damaged; {self._anew}.")
        self._turn = layers % 2

    def keep(self) -> NDArray[np.float32]:
        """A copy of what ``out`` holds now, where the other arrays are."""
        if not self._spill:
            return self.out.copy()
        copy: NDArray[np.float32] = self._map(self._folder / "kept.f32")
        copy[:] = self.out
        return copy

    def commit(self) -> int:
        """What ``out`` holds is a layer's result: make it durable; its CRC-32."""
        if self._spill:
            cast("np.memmap[Any, Any]", self.out).flush()
            return zlib.crc32(self.out.data)
        with create(self._file(self._turn)) as file:
            self.out.tofile(file)
            file.flush()
            os.fsync(file.fileno())
        return zlib.crc32(self.out.data)

    def turn_over(self) -> None:
        """What was committed, and recorded as such, is the next layer's input."""
        if self._spill:
            self._open(self._turn, anew=False)
        self._turn = 1 - self._turn

    def _open(self, turn: int, *, anew: bool) -> None:
        """Map the files: ``hidden`` is the one of ``turn``, ``out`` the other."""
        self.hidden = self._map(self._file(turn), anew=anew)
        self.out = self._map(self._file(1 - turn))
        self.middle = self._map(self._folder / "middle.f32")

    def _map(self, path: Path, *, anew: bool = True) -> NDArray[np.float32]:
        """A file as an array, the file of before if it is not to be ``anew``."""
        with create(path) if anew else os.fdopen(open_to_resume(path), "r+b") as file:
            mode: Literal["r+", "w+"] = "w+" if anew else "r+"
            return np.memmap(file, _DTYPE, mode, shape=self._shape)

    @property
    def _anew(self) -> str:
        return f"delete {self._folder} to start anew"

    def _file(self, turn: int) -> Path:
        return self._folder / f"states-{turn}.f32"
