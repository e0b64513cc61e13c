"""Reading a GGUF's header: metadata and tensor table, never the weights."""

import io
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from quantkit.core.errors import GGUFError
from quantkit.encodings.encoding import Encoding, encodings

# GGUF value types by number; 8 is a string, 9 an array.
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MOST_DIMS = 4


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
    """What a GGUF says about itself."""

    metadata: dict[str, Any]
    tensors: tuple[HeaderTensor, ...]
    data_offset: int


class _CutShortError(ValueError):
    """The bytes at hand end inside the header."""


def parse_header(start: bytes, n_bytes: int) -> Header | None:
    """The header of a GGUF file of ``n_bytes`` from its first bytes; None if they are too few.

    Raises:
        GGUFError: the file is no GGUF, or contradicts itself or its size.

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
    try:
        with path.open("rb") as file:
            return _Reader(file, n_bytes or path.stat().st_size).header()
    except OSError as error:
        raise GGUFError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, struct.error) as error:
        plain = type(error) in (ValueError, _CutShortError)
        reason = str(error) if plain else "its header is not readable"
        raise GGUFError(f"{path} is not a sound GGUF file: {reason}.") from None


class _Reader:
    """A cursor over the header. Raises ValueError with a reason on anything unsound."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size
        self._at = 0

    def header(self) -> Header:
        if self._take(4) != b"GGUF":
            raise ValueError("it does not start with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}; known are 2 and 3")
        n_tensors, n_entries = self._number("Q"), self._number("Q")
        metadata = {}
        for _ in range(n_entries):
            key = self._string()
            metadata[key] = self._value(self._number("I"))
        tensors = tuple(self._tensor() for _ in range(n_tensors))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its alignment is {alignment!r}")
        data_offset = -(-self._at // alignment) * alignment
        end = max((tensor.offset + tensor.n_bytes for tensor in tensors), default=0)
        if data_offset + end > self._at + self._left:
            missing = data_offset + end - self._at - self._left
            raise ValueError(f"it ends {missing} bytes before its last tensor does")
        return Header(metadata, tensors, data_offset)

    def _take(self, count: int) -> bytes:
        if count > self._left:
            raise ValueError("its header runs past its end")
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
                return [self._string() for _ in range(count)]
            code = self._scalar(item)
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
            raise ValueError(f"{name} has {n_dims} dimensions")
        dims = [self._number("Q") for _ in range(n_dims)]
        kind, offset = self._number("I"), self._number("Q")
        encoding = next((e for e in encodings().values() if e.id == kind), None)
        if encoding is None:
            raise ValueError(f"{name} has the unknown type {kind}")
        if not encoding.holds_rows_of(dims[0]):
            raise ValueError(f"{name} has rows of {dims[0]}, no whole blocks of {encoding.name}")
        return HeaderTensor(name, tuple(reversed(dims)), encoding, offset)
