"""What to say when two GGUF files differ."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gguf import GGUFReader


def assert_same_file(ours: Path, theirs: Path) -> None:
    """Compare two files byte for byte; the failure names the keys and tensors that differ."""
    if ours.read_bytes() != theirs.read_bytes():
        raise AssertionError("\n".join([f"{ours} is not {theirs}:", *differences(ours, theirs)]))


def differences(ours: Path, theirs: Path) -> list[str]:
    """A line for each metadata key and tensor of two GGUF files that differs."""
    from gguf import GGUFReader

    readers = GGUFReader(ours), GGUFReader(theirs)
    keys, tensors = (tuple(map(dict, pair)) for pair in zip(*map(_contents, readers), strict=True))
    lines = [*_compare("key", *keys), *_compare("tensor", *tensors)]
    if not lines:
        lines.append("keys and tensors are the same: it is the padding, or what follows them")
    return lines


def _contents(reader: "GGUFReader") -> tuple[dict[str, str], dict[str, str]]:
    """Descriptions of all keys and of all tensors; they are the same only if the bytes are."""
    keys = {
        name: f"{[kind.name for kind in field.types]} {_short(field.contents())} "
        f"at {field.offset}, {_digest(b''.join(part.tobytes() for part in field.parts))}"
        for name, field in reader.fields.items()
    }
    tensors = {
        tensor.name: f"{tensor.tensor_type.name} {[int(n) for n in tensor.shape]} "
        f"at {tensor.data_offset}, {_digest(np.asarray(tensor.data).tobytes())}"
        for tensor in reader.tensors
    }
    return keys, tensors


def _compare(what: str, ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    lines = [
        f"{what} {name}: ours {ours.get(name, 'lacks it')}; theirs {theirs.get(name, 'lacks it')}"
        for name in {**theirs, **ours}
        if ours.get(name) != theirs.get(name)
    ]
    if list(ours) != list(theirs) and set(ours) == set(theirs):
        lines.append(f"{what}s in another order: ours {list(ours)}; theirs {list(theirs)}")
    return lines


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:100]}... ({len(text)} characters)"


def _digest(data: bytes) -> str:
    import hashlib

    return f"sha256 {hashlib.sha256(data).hexdigest()[:12]}"
