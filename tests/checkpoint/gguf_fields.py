"""The metadata of a GGUF file, value by value as it lies there.

``gguf.GGUFReader`` takes half a minute over the vocabulary of Llama 3; this takes a moment.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Field:
    """A value, and the bytes of its type and its value."""

    value: Any
    raw: bytes


def read_fields(path: Path) -> dict[str, Field]:
    """The keys of a little-endian GGUF file, in their order."""
    data = path.read_bytes()
    _, version, _, count = struct.unpack_from("<4sIQQ", data)
    assert version in (2, 3)
    position = 24
    fields = {}

    def scalar(code: str) -> Any:
        nonlocal position
        (value,) = struct.unpack_from(f"<{code}", data, position)
        position += struct.calcsize(f"<{code}")
        return value

    def text() -> str:
        nonlocal position
        length = scalar("Q")
        position += length
        return data[position - length : position].decode()

    def value(kind: int) -> Any:
        nonlocal position
        if kind == _STRING:
            return text()
        if kind != _ARRAY:
            return scalar(_SCALARS[kind])
        inner, length = scalar("I"), scalar("Q")
        if inner in _SCALARS:
            code = f"{length}{_SCALARS[inner]}"
            values = list(struct.unpack_from(f"<{code}", data, position))
            position += struct.calcsize(f"<{code}")
            return values
        return [value(inner) for _ in range(length)]

    for _ in range(count):
        key = text()
        start = position
        decoded = value(scalar("I"))
        fields[key] = Field(decoded, data[start:position])
    return fields
