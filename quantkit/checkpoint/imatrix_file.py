"""Files of importance matrices, in both formats that llama.cpp writes.

Formats: ``tools/imatrix/imatrix.cpp`` and ``common/imatrix-loader.cpp`` of llama.cpp. The GGUF
format holds, per tensor, ``<name>.in_sum2`` (sums of squares, one row per expert) and
``<name>.counts``; the legacy ``.dat`` holds means that were scaled by a call count.
"""

import hashlib
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.gguf import HeaderTensor, read_header
from quantkit.core.errors import GGUFError, ImatrixError
from quantkit.core.files import open_file
from quantkit.core.printable import quoted

MADE_FROM = "quantkit.calibration"
"""The key under which one of ours says, in a hash, what it was made from."""
_AGAIN = "make it again"
# What the old format may hold at most: it has no header that could be checked against the file.
_MOST_ENTRIES = 2**16
_MOST_NAME = 4096
_MOST_VALUES = 2**28
_MOST_PADDING = 2**20


class HasSums(Protocol):
    """What is gathered for one tensor: sums of squares and tokens."""

    @property
    def squares(self) -> NDArray[np.float32]:
        """HasSums of squared activations, shape (matrices, columns)."""

    @property
    def counts(self) -> NDArray[np.float32]:
        """Tokens that each matrix saw, whole numbers."""


def write_imatrix(
    path: Path,
    entries: Mapping[str, HasSums],
    datasets: Sequence[str],
    chunks: int,
    context: int,
    notes: Mapping[str, str],
) -> None:
    """Write an importance matrix in llama.cpp's GGUF format, tensors in the order of their names.

    Args:
        path: the file.
        entries: by the tensors' names in GGUF.
        datasets: where the text came from; llama-quantize copies the first into its output.
        chunks: how many sequences of text.
        context: tokens per sequence.
        notes: further string keys, which llama.cpp ignores.

    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(datasets))
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", context)
    for key, text in notes.items():
        writer.add_string(key, text)
    for name, sums in sorted(entries.items()):
        one = len(sums.counts) == 1  # ggml drops a last dimension of 1
        writer.add_tensor(f"{name}.in_sum2", sums.squares.ravel() if one else sums.squares)
        writer.add_tensor(f"{name}.counts", sums.counts if one else sums.counts[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_note(path: Path, key: str) -> str | None:
    """A string key of an importance matrix in GGUF format; None where it has none."""
    try:
        value = read_header(path).metadata.get(key)
    except GGUFError:
        return None
    return value if isinstance(value, str) else None


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds: flat sums and counts by name; ``context`` 0 where it does not say."""

    entries: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    chunk_count: int
    context: int
    datasets: tuple[str, ...]
    end: int


def read_content(path: Path) -> tuple[Content, str]:
    """What a file of either format holds, and its sha256.

    Raises:
        ImatrixError: it is missing, of neither format, or cut short.

    """
    with open_file(path, error=ImatrixError, fix="give a file of llama-imatrix") as file:
        try:
            is_gguf = file.read(4) == b"GGUF"
            file.seek(0)
            content = _read_gguf(path, file) if is_gguf else _read_legacy(path, file)
            if os.fstat(file.fileno()).st_size > content.end + _MOST_PADDING:
                raise ImatrixError(f"{path} is longer than what it holds; {_AGAIN}.")
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ImatrixError(f"{path} cannot be read: {error.strerror}.") from None
    return content, sha256


def require_sound(path: Path, entries: Mapping[str, NDArray[np.float32]]) -> None:
    """Refuse numbers that no squares of activations, or means of them, can be.

    Raises:
        ImatrixError: there is one.

    """
    for name, values in entries.items():
        if not np.isfinite(values).all():
            raise ImatrixError(
                f"{path} has a NaN or infinite importance for {quoted(name)}; {_AGAIN}."
            )
        if (values < 0).any():
            raise ImatrixError(f"{path} has a negative importance for {quoted(name)}; {_AGAIN}.")


def _read_gguf(path: Path, file: BinaryIO) -> Content:
    try:
        header = read_header(path)
    except GGUFError as error:
        raise ImatrixError(f"{str(error).removesuffix('.')}; {_AGAIN}.") from None
    tensors = {tensor.name: tensor for tensor in header.tensors}
    chunks = header.metadata.get("imatrix.chunk_count")
    texts = header.metadata.get("imatrix.datasets")
    if type(chunks) is not int or not isinstance(texts, list) or not tensors:
        raise ImatrixError(f"{path} is a GGUF file but no importance matrix.")

    def values(tensor: HeaderTensor) -> NDArray[np.float32]:
        file.seek(header.data_offset + tensor.offset)
        return np.frombuffer(file.read(tensor.n_bytes), "<f4").astype(np.float32)

    entries: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    for name, tensor in tensors.items():
        base, _, kind = name.rpartition(".")
        if kind not in ("in_sum2", "counts"):
            continue
        other = tensors.get(f"{base}.counts" if kind == "in_sum2" else f"{base}.in_sum2")
        if other is None or tensor.encoding.name != "F32" or other.encoding.name != "F32":
            raise ImatrixError(
                f"{path} has no matching sums and counts for {quoted(base)}; {_AGAIN}."
            )
        if kind == "in_sum2":
            if tensor.n_elements % other.n_elements:
                raise ImatrixError(
                    f"{path} has {tensor.n_elements} sums but {other.n_elements} counts for "
                    f"{quoted(base)}; {_AGAIN}."
                )
            counts = values(other)
            if not (np.isfinite(counts).all() and (counts >= 0).all()):
                raise ImatrixError(
                    f"{path} has counts for {quoted(base)} that are no counts; {_AGAIN}."
                )
            # Counts are whole numbers stored as floats; llama.cpp rounds them, halves up.
            rounded = np.floor(counts.astype(np.float64) + 0.5).astype(np.float32)
            entries[base] = values(tensor), rounded
    context = header.metadata.get("imatrix.chunk_size")
    end = header.data_offset + max(t.offset + t.n_bytes for t in header.tensors)
    size = context if type(context) is int and context > 0 else 0
    return Content(entries, chunks, size, tuple(map(str, texts)), end)


def means(sums: NDArray[np.float32], counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """HasSums over counts in float32; an expert that no token reached counts every column as 1."""
    rows, n = sums.reshape(counts.size, -1), counts.reshape(-1, 1)
    return np.divide(rows, n, out=np.ones_like(rows), where=n > 0).ravel()


def _read_legacy(path: Path, file: BinaryIO) -> Content:
    left = size = os.fstat(file.fileno()).st_size

    def take(size: int, most: int) -> bytes:
        nonlocal left
        if not 0 <= size <= min(left, most):
            raise ImatrixError(f"{path} is not an importance matrix, or was cut short; {_AGAIN}.")
        left -= size
        return file.read(size)

    def number() -> int:
        return int(struct.unpack("<i", take(4, 4))[0])

    def text() -> str:
        return take(number(), _MOST_NAME).decode("utf-8", errors="replace").rstrip("\0")

    entries: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    n_entries = number()
    if not 1 <= n_entries <= _MOST_ENTRIES:
        raise ImatrixError(f"{path} is not an importance matrix.")
    for _ in range(n_entries):
        name = text()
        calls, n_values = number(), number()
        if n_values < 1:
            raise ImatrixError(f"{path} holds no values for {quoted(name)}; {_AGAIN}.")
        if name in entries or calls < 0:
            raise ImatrixError(
                f"{path} has {quoted(name)} twice or a negative count for it; {_AGAIN}."
            )
        values = np.frombuffer(take(4 * n_values, 4 * _MOST_VALUES), "<f4").astype(np.float32)
        entries[name] = values, np.array([max(1, calls)], np.float32)
    chunk_count = number() if left >= 4 else 0
    dataset = ""
    if left >= 4 and (length := number()) > 0:
        dataset = take(length, _MOST_NAME).decode("utf-8", errors="replace").rstrip("\0")
    return Content(entries, chunk_count, 0, (dataset,) if dataset else (), size - left)
