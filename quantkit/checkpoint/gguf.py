"""Reading a GGUF's header: metadata and tensor table, never the weights."""

import io
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from quantkit.core.errors import GGUFError
from quantkit.core.files import open_file
from quantkit.core.printable import quoted
from quantkit.encodings.encoding import Encoding, encodings
from quantkit.families.model import KeyValue

# GGUF value types by number; 8 is a string, 9 an array.
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MOST_DIMS = 4
_MAGIC = b"GGUF"

# What a header may have at most. The largest vocabularies have 262,144 tokens and twice as many
# merges, in 20 MB; the largest models a few thousand tensors.
_MOST_HEADER_BYTES = 2**26
_MOST_TENSORS = _MOST_ENTRIES = 2**16
_MOST_STRINGS = 2**21  # in all arrays together
_MOST_NUMBERS = 2**22
_MOST_SIZE = 2**63 - 1  # of any offset, dimension or product of them
_MOST_ALIGNMENT = 2**20


@dataclass(frozen=True, slots=True)
class HeaderTensor:
    """One row of the tensor table; ``shape`` is row-major, ``offset`` from the data's start."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    offset: int

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes, without padding."""
        return self.n_elements // self.encoding.elements * self.encoding.bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF says about itself.

    ``spans`` is where in the file each key lies with its value, ``entries`` the same as bytes,
    where they were read (see `read_entries`).
    """

    metadata: dict[str, Any]
    tensors: tuple[HeaderTensor, ...]
    data_offset: int
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    entries: tuple[KeyValue, ...] = ()


class _CutShortError(ValueError):
    """The bytes at hand end inside the header."""


def parse_header(start: bytes, n_bytes: int) -> Header | None:
    """The header of a GGUF file of ``n_bytes`` from its first bytes; None if they are too few.

    Raises:
        GGUFError: the file is not a GGUF, or contradicts itself or its size.

    """
    try:
        return _Reader(io.BytesIO(start), n_bytes).header()
    except _CutShortError:
        return None
    except (ValueError, struct.error) as error:
        reason = str(error) if type(error) is ValueError else "its header is not readable"
        raise GGUFError(f"it is not a sound GGUF file: {reason}") from None


def read_header(path: Path, n_bytes: int | None = None) -> Header:
    """The header of a GGUF file (version 2 or 3, little-endian).

    ``n_bytes`` is the size of the whole file where ``path`` holds no more than its header.

    Raises:
        GGUFError: the file is missing, no GGUF, cut short, or contradicts itself.

    """
    with open_file(path, error=GGUFError, fix="give another file") as file:
        try:
            return _Reader(file, n_bytes or os.fstat(file.fileno()).st_size).header()
        except OSError as error:
            raise GGUFError(f"{path} cannot be read: {error.strerror}.") from None
        except (ValueError, struct.error) as error:
            plain = type(error) in (ValueError, _CutShortError)
            reason = str(error) if plain else "its header is not readable"
            raise GGUFError(f"{path} is not a sound GGUF file: {reason}.") from None


def is_gguf(path: Path) -> bool:
    """Whether a regular file that is there begins as a GGUF does."""
    if not path.is_file():
        return False
    with open_file(path, error=GGUFError, fix="give another file") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_entries(path: Path, header: Header) -> tuple[KeyValue, ...]:
    """The metadata of a GGUF as it lies in the file, in its order.

    Args:
        path: the file, or one with its header alone.
        header: as it was read.

    Raises:
        GGUFError: the file cannot be read any more.

    """
    with open_file(path, error=GGUFError, fix="give another file") as file:
        data = file.read(header.data_offset)
    return tuple(KeyValue(key, data[start:end]) for key, (start, end) in header.spans.items())


class _Reader:
    """A cursor over the header. Raises ValueError with a reason on anything unsound."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size
        self._at = 0
        self._strings = self._numbers = 0  # in arrays

    def header(self) -> Header:
        if self._take(len(_MAGIC)) != _MAGIC:
            raise ValueError("it does not start with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}; known are 2 and 3")
        n_tensors, n_entries = self._number("Q"), self._number("Q")
        if n_tensors > _MOST_TENSORS or n_entries > _MOST_ENTRIES:
            raise ValueError(f"it claims {n_tensors} tensors and {n_entries} keys")
        metadata, spans = self._metadata(n_entries)
        tensors = self._tensors(n_tensors)
        alignment = metadata.get("general.alignment", 32)
        if (
            type(alignment) is not int
            or not 1 <= alignment <= _MOST_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise ValueError(f"its alignment is {quoted(alignment)}, no power of two")
        data_offset = -(-self._at // alignment) * alignment
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.offset % alignment:
                raise ValueError(f"{quoted(tensor.name)} lies at {tensor.offset}, unaligned")
            if tensor.offset < end:
                raise ValueError(f"{quoted(tensor.name)} overlaps the tensor before it")
            end = tensor.offset + tensor.n_bytes
        if data_offset + end > self._at + self._left:
            missing = data_offset + end - self._at - self._left
            raise ValueError(f"it ends {missing} bytes before its last tensor does")
        return Header(metadata, tensors, data_offset, spans)

    def _metadata(self, n_entries: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
        metadata: dict[str, Any] = {}
        spans = {}
        for _ in range(n_entries):
            start = self._at
            key = self._string()
            if not key:
                raise ValueError("it has a key without a name")
            if key in metadata:
                raise ValueError(f"it has the key {quoted(key)} twice")
            metadata[key] = self._value(self._number("I"))
            spans[key] = start, self._at
        return metadata, spans

    def _tensors(self, n_tensors: int) -> tuple[HeaderTensor, ...]:
        tensors: dict[str, HeaderTensor] = {}
        for _ in range(n_tensors):
            tensor = self._tensor()
            if tensor.name in tensors:
                raise ValueError(f"it has two tensors {quoted(tensor.name)}")
            tensors[tensor.name] = tensor
        return tuple(tensors.values())

    def _take(self, count: int) -> bytes:
        if count > self._left:
            raise ValueError("its header runs past its end")
        if self._at + count > _MOST_HEADER_BYTES:
            raise ValueError(f"its header has more than {_MOST_HEADER_BYTES:,} bytes")
        self._left -= count
        self._at += count
        taken = self._file.read(count)
        if len(taken) < count:
            raise _CutShortError("its header is cut short")
        return taken

    def _number(self, code: str) -> int:
        size = struct.calcsize(code)
        return int(struct.unpack(f"<{code}", self._take(size))[0])

    def _string(self) -> str:
        return self._take(self._number("Q")).decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            item, count = self._number("I"), self._number("Q")
            if item == _STRING:
                self._strings += count
                if self._strings > _MOST_STRINGS:
                    raise ValueError(f"it claims more than {_MOST_STRINGS:,} texts")
                return [self._string() for _ in range(count)]
            code = self._scalar(item)
            self._numbers += count
            if self._numbers > _MOST_NUMBERS:
                raise ValueError(f"it claims more than {_MOST_NUMBERS:,} numbers")
            return list(struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize(code))))
        code = self._scalar(kind)
        return struct.unpack(f"<{code}", self._take(struct.calcsize(code)))[0]

    @staticmethod
    def _scalar(kind: int) -> str:
        if kind not in _SCALARS:
            raise ValueError(f"it holds a value of unknown type {kind}")
        return _SCALARS[kind]

    def _tensor(self) -> HeaderTensor:
        name = self._string()
        n_dims = self._number("I")
        if not 1 <= n_dims <= _MOST_DIMS:
            raise ValueError(f"{quoted(name)} has {n_dims} dimensions")
        dims = [self._number("Q") for _ in range(n_dims)]
        if prod(dims) > _MOST_SIZE or not all(dims):
            raise ValueError(f"{quoted(name)} has the dimensions {dims}")
        kind, offset = self._number("I"), self._number("Q")
        encoding = _by_id().get(kind)
        if encoding is None:
            raise ValueError(f"{quoted(name)} has the unknown type {kind}")
        if not encoding.holds_rows_of(dims[0]):
            raise ValueError(
                f"{quoted(name)} has rows of {dims[0]}, no whole blocks of {encoding.name}"
            )
        return HeaderTensor(name, tuple(reversed(dims)), encoding, offset)


@cache
def _by_id() -> dict[int, Encoding]:
    return {encoding.id: encoding for encoding in encodings().values()}
