"""What to say when two GGUF files differ."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gguf import GGUFReader

_SHOWN = 100


def assert_same_file(ours: Path, theirs: Path) -> None:
    """Compare two files byte for byte; the failure names the keys and tensors that differ."""
    if ours.read_bytes() != theirs.read_bytes():
        raise AssertionError("\n".join([f"{ours} is not {theirs}:", *differences(ours, theirs)]))


def differences(ours: Path, theirs: Path) -> list[str]:
    """A line for each metadata key and each tensor that two different GGUF files disagree on."""
    from gguf import GGUFReader

    (our_keys, our_tensors), (their_keys, their_tensors) = (
        _contents(GGUFReader(path)) for path in (ours, theirs)
    )
    lines = [
        *_compare("key", our_keys, their_keys),
        *_compare("tensor", our_tensors, their_tensors),
    ]
    return lines or ["every key and tensor is the same: it is the padding"]


def _contents(reader: "GGUFReader") -> tuple[dict[str, str], dict[str, str]]:
    """A line for each key and for each tensor that tells all of its bits from others."""
    keys = {
        name: f"{' of '.join(kind.name for kind in field.types)} {_shown(field.contents())}, "
        f"{_digest(b''.join(part.tobytes() for part in field.parts))}"
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")  # the counts and the version at the start of the file
    }
    tensors = {
        tensor.name: f"{tensor.tensor_type.name} {tensor.shape.tolist()}, "
        f"{_digest(np.asarray(tensor.data).tobytes())}"
        for tensor in reader.tensors
    }
    return keys, tensors


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
