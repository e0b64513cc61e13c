"""Rows of a checkpoint's tensors, wherever and however they lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.checkpoint import Checkpoint, RowReader
from quantkit.core.errors import CheckpointError
from quantkit.core.files import open_file
from quantkit.core.tensors import FLOAT_BYTES, SourceTensor


def open_rows(checkpoint: Checkpoint) -> RowReader:
    """The function that reads rows of any tensor: ``read_rows(name, first, count)``.

    It gives little-endian bytes, 1-D, in transformers' order of rows. Rows of a 3-D tensor count
    over all its matrices.
    """
    return checkpoint.read_rows or StoredRows(checkpoint.tensors)


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Reads rows of tensors where they lie."""

    tensors: Mapping[str, SourceTensor]

    def __call__(self, name: str, first: int, count: int) -> NDArray[np.uint8]:
        """Rows of the tensor called ``name``."""
        return read_stored(self.tensors[name], first, count)


def read_stored(tensor: SourceTensor, first: int, count: int) -> NDArray[np.uint8]:
    """Consecutive rows of a tensor as they lie in its file, as bytes.

    Raises:
        CheckpointError: the file cannot be read or has become shorter.

    """
    n_bytes = count * tensor.row_bytes
    # The file is opened for each slab: nothing stays open, and nothing is mapped, so memory is the
    # slab.
    with open_file(tensor.file, error=CheckpointError) as file:
        try:
            offset = tensor.offset + first * tensor.row_bytes
            raw = np.fromfile(file, np.uint8, n_bytes, offset=offset)
        except OSError as error:
            raise CheckpointError(
                f"{tensor.file} cannot be read: {error.strerror}; download it again."
            ) from None
    if raw.size != n_bytes:
        raise CheckpointError(f"{tensor.file} became shorter while it was read; download it again.")
    return raw


@dataclass(frozen=True, slots=True)
class Joined:
    """A matrix in pieces, which may lie in several files.

    The pieces are stacked (``axis`` 0) or side by side (1), and have one dtype.
    """

    pieces: tuple[SourceTensor, ...]
    axis: int = 0

    @property
    def columns(self) -> int:
        """Elements per row."""
        widths = [piece.shape[-1] for piece in self.pieces]
        return sum(widths) if self.axis else widths[0]

    @property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return self.columns * FLOAT_BYTES[self.pieces[0].dtype]

    def read(self, first: int, count: int) -> NDArray[np.uint8]:
        """Some rows: bytes, shape (count, row bytes)."""
        if self.axis:
            parts = [read_stored(p, first, count).reshape(count, -1) for p in self.pieces]
            return np.concatenate(parts, axis=1)
        parts = []
        for piece in self.pieces:
            rows = piece.n_bytes // piece.row_bytes
            start, stop = max(first, 0), min(first + count, rows)
            if start < stop:
                parts.append(read_stored(piece, start, stop - start))
            first -= rows
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole.reshape(count, -1)


@dataclass(frozen=True, slots=True)
class View:
    """A matrix of a model inside a raw one.

    ``first`` is where it begins, in rows of the raw matrix. Where it is ``transposed``, its
    columns are those rows, ``columns`` of them. Where ``head_dim`` is above 0, the rows of each
    head lie in pairs, as Mistral rotates neighbours, and are given in halves, as transformers does.
    """

    raw: Joined
    first: int = 0
    transposed: bool = False
    columns: int = 0
    head_dim: int = 0


class ViewReader:
    """Reads rows of views by name. Keeps one transposed matrix, whose slabs are asked in turn."""

    def __init__(self, views: Mapping[str, View]) -> None:
        self._views = views
        self._name = ""
        self._matrix = np.empty((0, 0), np.uint8)

    def __call__(self, name: str, first: int, count: int) -> NDArray[np.uint8]:
        """Rows of the view called ``name``."""
        view = self._views[name]
        if view.transposed:
            return self._columns(name, view, first, count)
        if view.head_dim:
            return _in_halves(view, first, count)
        return view.raw.read(view.first + first, count).reshape(-1)

    def _columns(self, name: str, view: View, first: int, count: int) -> NDArray[np.uint8]:
        if name != self._name:
            self._name, self._matrix = name, view.raw.read(view.first, view.columns)
        item = FLOAT_BYTES[view.raw.pieces[0].dtype]
        words = self._matrix.view(np.uint16 if item == 2 else np.uint32)
        return np.ascontiguousarray(words[:, first : first + count].T).reshape(-1).view(np.uint8)


def _in_halves(view: View, first: int, count: int) -> NDArray[np.uint8]:
    """Rows first of all even places of a head, then of all odd ones, from whole heads."""
    size = view.head_dim
    start, stop = first // size * size, -(-(first + count) // size) * size
    rows = view.raw.read(view.first + start, stop - start)
    halves = rows.reshape(-1, size // 2, 2, view.raw.row_bytes).swapaxes(1, 2)
    ordered = np.ascontiguousarray(halves).reshape(stop - start, -1)
    return ordered[first - start : first - start + count].reshape(-1)


def file_order(views: Mapping[str, View]) -> dict[str, tuple[Path, int]]:
    """Where each view begins: its file and the offset in it."""
    found = {}
    for name, view in views.items():
        left = view.first
        for piece in view.raw.pieces:
            rows = piece.n_bytes // piece.row_bytes
            if view.raw.axis or left < rows:
                break
            left -= rows
        found[name] = (piece.file, piece.offset + left * piece.row_bytes)
    return found
