"""What to say when two GGUF files differ."""

import hashlib
import struct
from pathlib import Path
from typing import Any

from quantkit.checkpoint.gguf import read_header

_SHOWN = 100


def assert_same_file(ours: Path, theirs: Path) -> None:
    """Compare two files byte for byte; the failure names the keys and tensors that differ."""
    if ours.read_bytes() != theirs.read_bytes():
        raise AssertionError("\n".join([f"{ours} is not {theirs}:", *differences(ours, theirs)]))


def differences(ours: Path, theirs: Path) -> list[str]:
    """A line for each metadata key and each tensor that two different GGUF files disagree on."""
    (our_keys, our_tensors), (their_keys, their_tensors) = map(_contents, (ours, theirs))
    lines = [
        *_compare("key", our_keys, their_keys),
        *_compare("tensor", our_tensors, their_tensors),
    ]
    return lines or ["every key and tensor is the same: it is the padding"]


def _contents(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """A line for each key and for each tensor that tells all of its bits from others.

    Read by quantkit, because gguf-py's reader does not know all of llama.cpp's types.
    """
    header, raw = read_header(path), path.read_bytes()
    keys = {
        name: f"{_type(raw[start:end])} {_shown(header.metadata[name])}, {_digest(raw[start:end])}"
        for name, (start, end) in header.spans.items()
    }
    tensors = {}
    for tensor in header.tensors:
        start = header.data_offset + tensor.offset
        digest = _digest(raw[start : start + tensor.n_bytes])
        tensors[tensor.name] = f"{tensor.encoding.name} {[*reversed(tensor.shape)]}, {digest}"
    return keys, tensors


def _type(entry: bytes) -> str:
    """What type a key has: the number behind its name, and of an array that of its items."""
    from gguf import GGUFValueType

    (length,) = struct.unpack_from("<Q", entry)
    kind, item = struct.unpack_from("<II", entry.ljust(length + 16, b"\0"), 8 + length)
    name = GGUFValueType(kind).name
    return f"{name} of {GGUFValueType(item).name}" if kind == GGUFValueType.ARRAY else name


def _compare(what: str, ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    lines = [
        f"{what} {name}: ours {ours.get(name, 'lacks it')}; theirs {theirs.get(name, 'lacks it')}"
        for name in {**theirs, **ours}
        if ours.get(name) != theirs.get(name)
    ]
    if not lines and list(ours) != list(theirs):
        lines.append(f"{what}s are in another order: ours {list(ours)}; theirs {list(theirs)}")
    return lines


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def _digest(data: bytes) -> str:
    return f"sha256 {hashlib.sha256(data).hexdigest()[:12]}"
