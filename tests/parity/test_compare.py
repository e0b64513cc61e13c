"""The comparison must be able to fail, and to say why."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gguf_keys import add_key
from tests.parity.compare import assert_same_file


def write(path: Path, keys: dict[str, Any], tensors: dict[str, Any], tail: bytes = b"") -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    for name, value in keys.items():
        add_key(writer, name, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.write_bytes(path.read_bytes() + tail)
    return path


KEYS = {"a": 1, "b": 2}
ONES, TWOS = np.ones((2, 32), np.float32), np.full((2, 32), 2, np.float32)
TENSORS = {"x": ONES, "y": TWOS}


@pytest.mark.parametrize(
    ("keys", "tensors", "tail", "lines"),
    [
        ({"a": 1, "b": 3}, TENSORS, b"", ["key b: ours UINT32 3, sha.*; theirs UINT32 2, sha"]),
        ({"a": 1, "b": 2.0}, TENSORS, b"", ["key b: ours FLOAT32 2.0, .*; theirs UINT32 2, "]),
        ({"a": 1}, TENSORS, b"", ["key b: ours lacks it; theirs UINT32 2, "]),
        ({**KEYS, "c": 3}, TENSORS, b"", ["key c: ours UINT32 3, .*; theirs lacks it"]),
        ({"b": 2, "a": 1}, TENSORS, b"", ["keys are in another order: ours .*'b', 'a'"]),
        (KEYS, {"x": ONES, "y": ONES}, b"", [r"tensor y: ours F32 \[32, 2\], sha.*; theirs F32"]),
        (KEYS, {"x": ONES.astype(np.float16), "y": TWOS}, b"", ["tensor x: ours F16 .*; theirs F"]),
        (KEYS, {"x": ONES.reshape(4, 16), "y": TWOS}, b"", [r"tensor x: ours F32 \[16, 4\]"]),
        (KEYS, {"y": TWOS, "x": ONES}, b"", ["tensors are in another order"]),
        (KEYS, TENSORS, b"\0", ["it is the padding"]),
        ({"a": 2}, {"x": TWOS}, b"", ["key a: ", "\nkey b: ", "\ntensor x: ", "\ntensor y: "]),
    ],
)
def test_differences_are_named(
    tmp_path: Path, keys: Any, tensors: Any, tail: bytes, lines: list[str]
) -> None:
    ours = write(tmp_path / "ours.gguf", keys, tensors, tail)
    theirs = write(tmp_path / "theirs.gguf", KEYS, TENSORS)
    for line in lines:
        with pytest.raises(AssertionError, match=line):
            assert_same_file(ours, theirs)


def test_the_same_is_the_same(tmp_path: Path) -> None:
    ours, theirs = (write(tmp_path / f"{n}.gguf", KEYS, TENSORS) for n in (1, 2))
    assert_same_file(ours, theirs)
