"""What a layer hands to the next, of all chunks: in memory or in a file, and safe on disk."""

import json
import os
import threading
import zlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.calibration.lockstep.scratch import Scratch
from quantkit.core.documents import parse_object
from quantkit.core.errors import CalibrationError, OutputError
from quantkit.core.files import open_file
from quantkit.core.writing import create, is_own

if TYPE_CHECKING:
    from quantkit.calibration.lockstep.forward import LockstepForward

_DTYPES = {
    torch.float32: "<f4",
    torch.int64: "<i8",
    torch.int32: "<i4",
    torch.bool: "|b1",
}
_Leaf: TypeAlias = tuple[str, tuple[int, ...]]  # dtype and shape, of one chunk's

# Arrays of states at once: what a layer gets and what it gives; on the disk also what the model
# still holds of the layer before.
_IN_MEMORY, _SPILLED, _KEPT = 2, 3, 2
_OF_EXPERTS = 2  # what goes into a layer's experts, and what they make of it
_OF_ATTENTION = 3  # queries, keys and values, while their matrices are replaced
_HEADER = 2**16  # bytes; a page or more, so that what follows can be mapped
_READ = 8 * 2**20


class States:
    """The outputs of the latest layer, and what layers write into for those that come after them.

    The latter are the dictionaries that a model passes to all its layers, as Gemma 4 does for the
    keys and values that some layers share. Each layer's are in a file of their own, by turns one of
    two, so that a kill at any time leaves one that is whole. Where they ``spill``, the model goes
    on with arrays that are mapped from that file; nothing is ever written over what it may hold.
    """

    def __init__(
        self, folder: Path, chunks: int, device: torch.device, *, spill: bool, durable: bool
    ) -> None:
        self._folder = folder
        self._chunks = chunks
        self._device = device
        self._spill = spill and device.type == "cpu"
        self._durable = durable
        self._turn = 0
        self._lock = threading.Lock()
        self._structure: Any = None
        self._leaves: list[_Leaf] | None = None
        self._arrays: list[NDArray[Any]] = []
        self._held: dict[int, list[Tensor]] = {}
        self._resumed: tuple[Any, list[NDArray[Any]]]

    def scratch(self) -> Scratch | None:
        """Where chunks may leave what they have within a layer; None where that is in memory."""
        return Scratch(self._folder, self._chunks) if self._spill else None

    def put(self, chunk: int, out: Any, arguments: Mapping[str, Any]) -> Any:
        """Keep what a layer made of a chunk; what the model is to go on with.

        Args:
            chunk: its number.
            out: what the layer returned.
            arguments: what it was called with, by name; its dictionaries are kept as they are now.

        Raises:
            CalibrationError: it cannot be kept.

        """
        if not (self._spill or self._durable):
            return out
        leaves: list[Tensor] = []
        shared = {key: dict(v) for key, v in arguments.items() if isinstance(v, MutableMapping)}
        structure = [_flatten(out, leaves), _flatten(shared if self._durable else {}, leaves)]
        with self._lock:
            if self._leaves is None:
                self._begin(structure, leaves)
        if structure != self._structure:
            raise CalibrationError(
                "The layers of this model pass on different things for different text."
            )
        if not self._spill:
            self._held[chunk] = leaves
            return out
        kept = []
        for array, leaf in zip(self._arrays, leaves, strict=True):
            array[chunk] = leaf.numpy()
            kept.append(torch.from_numpy(array[chunk]))
        return _build(structure[0], kept)

    def commit(self) -> int:
        """What all chunks have put is made durable; its CRC-32, or 0 if it need not last."""
        crc = 0
        if self._durable and self._spill:
            path = self._file(self._turn)
            for array in self._arrays:
                array.flush()  # type: ignore[attr-defined] # of a mapped array
            with open_file(path, error=OutputError, fix=self._anew, follow=False) as file:
                crc = _crc_of(file)
                os.fsync(file.fileno())
        elif self._durable:
            with create(self._file(self._turn)) as file:
                header = self._header()
                file.write(header)
                crc = zlib.crc32(header)
                for number in range(len(self._leaves or ())):
                    for chunk in range(self._chunks):
                        data = self._held[chunk][number].cpu().contiguous().numpy().tobytes()
                        file.write(data)
                        crc = zlib.crc32(data, crc)
                file.flush()
                os.fsync(file.fileno())
        return crc

    def turn_over(self) -> None:
        """What was committed is on record: the next layer's go elsewhere."""
        self._leaves, self._structure = None, None
        self._arrays, self._held = [], {}
        self._turn = 1 - self._turn

    def resume(self, layers: int, crc: int) -> None:
        """Go on with what so many finished layers left.

        Raises:
            OutputError: the file is missing, or not of this CRC-32.

        """
        turn = (layers - 1) % 2
        path = self._file(turn)
        damaged = OutputError(f"{path} is missing or damaged; {self._anew}.")
        if not is_own(path) or path.stat().st_size < _HEADER:
            raise damaged
        with open_file(path, error=OutputError, fix=self._anew, follow=False) as file:
            if _crc_of(file) != crc:
                raise damaged
            file.seek(0)
            header = parse_object(file.read(_HEADER), path, error=OutputError, fix=self._anew)
            leaves = [(dtype, tuple(shape)) for dtype, shape in header["leaves"]]
            self._resumed = header["structure"], self._map(file, leaves, "r")
        self._turn = 1 - turn

    def restore(self, chunk: int, arguments: Mapping[str, Any]) -> Any:
        """What the last finished layer made of a chunk, with the dictionaries as it left them."""
        (out, shared), arrays = self._resumed
        leaves = [torch.from_numpy(array[chunk].copy()).to(self._device) for array in arrays]
        for key, content in _build(shared, leaves).items():
            arguments[key].update(content)
        return _build(out, leaves)

    def _begin(self, structure: Any, leaves: list[Tensor]) -> None:
        self._structure = structure
        self._leaves = [(_DTYPES[leaf.dtype], tuple(leaf.shape)) for leaf in leaves]
        if self._spill:
            with create(self._file(self._turn)) as file:
                file.write(self._header())
                file.truncate(_HEADER + sum(map(self._n_bytes, self._leaves)))
                self._arrays = self._map(file, self._leaves, "r+")

    def _map(self, file: BinaryIO, leaves: list[_Leaf], mode: Any) -> list[NDArray[Any]]:
        arrays: list[NDArray[Any]] = []
        offset = _HEADER
        for leaf in leaves:
            dtype, shape = leaf
            arrays.append(np.memmap(file, dtype, mode, offset, (self._chunks, *shape)))
            offset += self._n_bytes(leaf)
        return arrays

    def _n_bytes(self, leaf: _Leaf) -> int:
        dtype, shape = leaf
        return self._chunks * prod(shape) * np.dtype(dtype).itemsize

    def _header(self) -> bytes:
        text = json.dumps({"structure": self._structure, "leaves": self._leaves}).encode()
        return text.ljust(_HEADER)

    @property
    def _anew(self) -> str:
        return f"delete {self._folder} to start over"

    def _file(self, turn: int) -> Path:
        return self._folder / f"states-{turn}.f32"


@dataclass(frozen=True, slots=True)
class Room:
    """Whether activations ``spill`` to the disk, and the bytes of them there."""

    spills: bool
    n_bytes: int

    @classmethod
    def of(
        cls,
        forward: "LockstepForward",
        shape: tuple[int, ...],
        max_memory: int,
        *,
        is_durable: bool,
        replaces: bool = False,
        more_arrays: int = 0,
    ) -> "Room":
        """What a run takes.

        Args:
            forward: what is run.
            shape: of the tokens.
            max_memory: bytes of activations above which they go to the disk.
            is_durable: whether they are kept there in any case.
            replaces: whether matrices are replaced: all chunks then wait at each.
            more_arrays: of states that a visitor keeps.

        """
        one = forward.state_bytes(shape)
        inner = (_OF_EXPERTS if forward.experts else 0) + more_arrays
        widest = 0
        if replaces:
            inner += _OF_ATTENTION
            widest = prod(shape) * 4 * forward.widest
        if (_IN_MEMORY + inner) * one + widest > max_memory:
            return cls(True, (_SPILLED + inner) * one + widest)
        return cls(False, _KEPT * one if is_durable else 0)


def _crc_of(file: BinaryIO) -> int:
    crc = 0
    while data := file.read(_READ):
        crc = zlib.crc32(data, crc)
    return crc


def _flatten(tree: Any, leaves: list[Tensor]) -> Any:
    """What tensors are put together to, as JSON; they are added to ``leaves``."""
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}
    if isinstance(tree, Tensor) and tree.dtype in _DTYPES:
        leaves.append(tree)
        return len(leaves) - 1
    if isinstance(tree, tuple | list):
        return [_flatten(item, leaves) for item in tree]
    if isinstance(tree, Mapping) and all(isinstance(key, int | str) for key in tree):
        return {"items": [[key, _flatten(item, leaves)] for key, item in tree.items()]}
    raise CalibrationError(
        f"The layers of this model pass on {type(tree).__name__}, which quantkit cannot keep."
    )


def _build(structure: Any, leaves: list[Tensor]) -> Any:
    """What `_flatten` took apart, with other leaves."""
    if isinstance(structure, int):
        return leaves[structure]
    if isinstance(structure, list):
        return tuple(_build(item, leaves) for item in structure)
    if "items" in structure:
        return {key: _build(item, leaves) for key, item in structure["items"]}
    return structure["value"]
