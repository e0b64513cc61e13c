"""Importance matrices, in both formats that llama.cpp writes.

An importance matrix says how much each input column of each weight matters: the mean square of
the activations it met. Formats: ``tools/imatrix/imatrix.cpp`` and ``common/imatrix-loader.cpp`` of
llama.cpp. The GGUF format holds, per tensor, ``<name>.in_sum2`` (sums of squares, one row per
expert) and ``<name>.counts``; the legacy ``.dat`` holds means that were scaled by a call count.
"""

import hashlib
import math
import os
import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.gguf import HeaderTensor, read_header
from quantkit.core.errors import GGUFError, ImatrixError
from quantkit.core.files import open_file
from quantkit.core.printable import quoted
from quantkit.families.model import Target

MADE_FROM = "quantkit.calibration"
"""The key under which one of ours says, in a hash, what it was made from."""
_LAYER = re.compile(r"blk\.([0-9]+)\.(.+)")
_AGAIN = "make it anew"
# What the old format may hold at most: it has no header that could be checked against the file.
_MOST_ENTRIES = 2**16
_MOST_NAME = 4096
_MOST_VALUES = 2**28
_MOST_PADDING = 2**20


@dataclass(frozen=True, slots=True)
class Imatrix:
    """Importance per tensor name: float32, experts one after the other, columns within each."""

    path: Path
    sha256: str
    entries: Mapping[str, NDArray[np.float32]]
    chunk_count: int
    datasets: tuple[str, ...]

    def columns_of(self, target: Target) -> NDArray[np.float32] | None:
        """Importance of each column: shape (matrices, columns); None where there is no entry.

        Raises:
            ImatrixError: the entry is of another size. Only the token embeddings may differ, as
                in llama-quantize; they then go without.

        """
        values = self.entries.get(target.name)
        if values is None:
            return None
        matrices = target.shape[0] if len(target.shape) == 3 else 1
        if values.size != matrices * target.columns:
            if target.name in _EMBEDDINGS:
                return None
            raise ImatrixError(
                f"{self.path} has {values.size} values for {target.name}, which needs "
                f"{matrices * target.columns}: it was made for another model."
            )
        return values.reshape(matrices, target.columns)


_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
# Tensors that llama-imatrix sees only when it is asked to, or never.
_SELDOM_SEEN = {"token_embd.weight", "output.weight"}
_FEW, _MANY = 3, 12  # names that are written out


def require_same_model(
    imatrix: Imatrix, targets: Iterable[Target], wanted: Sequence[Target]
) -> str | None:
    """Refuse an importance matrix of another model; what to say of one that lacks some entries.

    llama-quantize takes either, and prints a line for every tensor without an entry.

    Args:
        imatrix: what was read.
        targets: all tensors of the model.
        wanted: those whose encoding can use importance.

    Raises:
        ImatrixError: it has entries for tensors that the model has not, or none for its tensors.

    """
    names = {target.name for target in targets} | _SELDOM_SEEN
    strange = [name for name in imatrix.entries if name not in names]
    usual = [target for target in wanted if target.name not in _SELDOM_SEEN]
    missing = [target.name for target in usual if target.name not in imatrix.entries]
    if strange or (missing and len(missing) == len(usual)):
        faults = []
        if strange:
            listed = _listed(strange, _FEW)
            faults.append(f"has entries for {listed}, which this model does not have")
        if missing:
            faults.append(f"has none for {_listed(missing, _FEW)}")
        raise ImatrixError(
            f"{imatrix.path} was made for another model: it {', and '.join(faults)}; make one from "
            "this model with quantkit calibrate or llama-imatrix."
        )
    if not missing:
        return None
    count = f"{len(missing)} tensors" if len(missing) > 1 else "1 tensor"
    return (
        f"{imatrix.path.name} has no entry for {count}, quantized without importance: "
        f"{_listed(missing, _MANY)}."
    )


def _listed(names: Sequence[str], most: int) -> str:
    """Names one by one, or where there are more those of a role as ``blk.0-55.ffn_up.weight``."""
    if len(names) <= most:
        return ", ".join(names)
    layers: dict[str, list[int]] = defaultdict(list)
    listed = []
    for name in names:
        if match := _LAYER.fullmatch(name):
            layers[match[2]].append(int(match[1]))
        else:
            listed.append(name)
    for rest, numbers in layers.items():
        first, last = min(numbers), max(numbers)
        is_whole = len(numbers) > 1 and sorted(numbers) == list(range(first, last + 1))
        span = f"{first}-{last}" if is_whole else ",".join(map(str, sorted(numbers)))
        listed.append(f"blk.{span}.{rest}")
    more = f" and {len(listed) - _MANY} more" if len(listed) > _MANY else ""
    return ", ".join(listed[:_MANY]) + more


@dataclass(frozen=True, slots=True)
class Gathered:
    """What was gathered of text, before it is divided: raw sums by the tensors' names.

    ``context`` is the number of tokens per sequence.
    """

    entries: Mapping[str, "Sums"]
    chunk_count: int
    context: int
    datasets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RawSums:
    """Sums of squares, shape (matrices, columns), and how many rows each or all of them saw."""

    squares: NDArray[np.float32]
    counts: NDArray[np.float32]


class Sums(Protocol):
    """What is gathered for one tensor: sums of squares and tokens."""

    @property
    def squares(self) -> NDArray[np.float32]:
        """Sums of squared activations, shape (matrices, columns)."""

    @property
    def counts(self) -> NDArray[np.float32]:
        """Tokens that each matrix saw, whole numbers."""


def write_imatrix(
    path: Path,
    entries: Mapping[str, Sums],
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


def stand_in(
    path: Path, targets: Iterable[Target], chunks: int, datasets: tuple[str, ...]
) -> Imatrix:
    """What has the names, the text and the size of a matrix that is not made yet."""
    entries = {
        target.name: np.broadcast_to(np.float32(1), math.prod(target.shape[:-2]) * target.columns)
        for target in targets
        if target.is_linear
    }
    return Imatrix(path, "", entries, chunks, datasets)


def read_note(path: Path, key: str) -> str | None:
    """A string key of an importance matrix in GGUF format; None where it has none."""
    try:
        value = read_header(path).metadata.get(key)
    except GGUFError:
        return None
    return value if isinstance(value, str) else None


def load_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix, normalized as llama-quantize does before it uses one.

    Raises:
        ImatrixError: the file is missing, of neither format, cut short, or holds values that no
            mean of squares can have.

    """
    content, sha256 = _read(path)
    entries = {name: _means(*raw) for name, raw in content.entries.items()}
    _require_sound(path, entries)
    return Imatrix(path, sha256, entries, content.chunk_count, content.datasets)


def load_sums(path: Path, context: int) -> Gathered:
    """Read an importance matrix as it was gathered, to go on with it or to add it to another.

    Args:
        path: the file.
        context: tokens per sequence, which the old format does not say.

    Raises:
        ImatrixError: as `load_imatrix` does.

    """
    content, _ = _read(path)
    # The old format has means, scaled by sequences (``load_imatrix`` in tools/imatrix/imatrix.cpp).
    scale = np.float32(1 if content.context else context)
    entries = {
        name: RawSums((squares * scale).reshape(counts.size, -1), counts * scale)
        for name, (squares, counts) in content.entries.items()
    }
    _require_sound(path, {name: sums.squares for name, sums in entries.items()})
    return Gathered(entries, content.chunk_count, content.context or context, content.datasets)


def add_sums(files: Sequence[tuple[Path, Gathered]]) -> Gathered:
    """What several files have gathered, together, as ``llama-imatrix --in-file`` adds them.

    Raises:
        ImatrixError: one has other sizes than those before it, so it is of another model.

    """
    entries: dict[str, RawSums] = {}
    for path, gathered in files:
        for name, sums in gathered.entries.items():
            known = entries.get(name)
            if known is None:
                entries[name] = RawSums(sums.squares.copy(), sums.counts.copy())
                continue
            counts = max(known.counts.size, sums.counts.size)
            if (
                known.squares.size != sums.squares.size
                or counts % known.counts.size
                or (counts % sums.counts.size)
            ):
                raise ImatrixError(
                    f"{path} has {sums.squares.size} sums for {quoted(name)}, and {files[0][0]} "
                    f"{known.squares.size}: they were made for other models."
                )
            entries[name] = RawSums(
                (known.squares.ravel() + sums.squares.ravel()).reshape(counts, -1),
                np.broadcast_to(known.counts, counts) + np.broadcast_to(sums.counts, counts),
            )
    context = files[0][1].context
    most = max((float(sums.counts.max()) for sums in entries.values()), default=0.0)
    datasets = tuple(name for _, gathered in files for name in gathered.datasets)
    return Gathered(entries, int(most) // context, context, datasets)


@dataclass(frozen=True, slots=True)
class _Content:
    """What a file holds: flat sums and counts by name; ``context`` 0 where it does not say."""

    entries: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    chunk_count: int
    context: int
    datasets: tuple[str, ...]
    end: int


def _read(path: Path) -> tuple[_Content, str]:
    """What a file of either format holds, and its sha256."""
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


def _require_sound(path: Path, entries: Mapping[str, NDArray[np.float32]]) -> None:
    for name, values in entries.items():
        if not np.isfinite(values).all():
            raise ImatrixError(
                f"{path} has a NaN or infinite importance for {quoted(name)}; {_AGAIN}."
            )
        if (values < 0).any():
            raise ImatrixError(f"{path} has a negative importance for {quoted(name)}; {_AGAIN}.")


def _read_gguf(path: Path, file: BinaryIO) -> _Content:
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
    return _Content(entries, chunks, size, tuple(map(str, texts)), end)


def _means(sums: NDArray[np.float32], counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums over counts in float32; an expert that no token reached counts every column as 1."""
    rows, n = sums.reshape(counts.size, -1), counts.reshape(-1, 1)
    return np.divide(rows, n, out=np.ones_like(rows), where=n > 0).ravel()


def _read_legacy(path: Path, file: BinaryIO) -> _Content:
    left = size = os.fstat(file.fileno()).st_size

    def take(size: int, most: int) -> bytes:
        nonlocal left
        if not 0 <= size <= min(left, most):
            raise ImatrixError(f"{path} is no importance matrix, or was cut short; {_AGAIN}.")
        left -= size
        return file.read(size)

    def number() -> int:
        return int(struct.unpack("<i", take(4, 4))[0])

    def text() -> str:
        return take(number(), _MOST_NAME).decode("utf-8", errors="replace").rstrip("\0")

    entries: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    n_entries = number()
    if not 1 <= n_entries <= _MOST_ENTRIES:
        raise ImatrixError(f"{path} is no importance matrix.")
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
    return _Content(entries, chunk_count, 0, (dataset,) if dataset else (), size - left)
