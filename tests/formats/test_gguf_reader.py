"""Our GGUF header reader: agrees with gguf-py, and survives any damage."""

import contextlib
from pathlib import Path

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.build.work import prepare
from quantkit.core.errors import GGUFError
from quantkit.formats.gguf.reader import read_header
from quantkit.plan.quants import find_quants
from tests.random_checkpoints import random_checkpoint


@pytest.fixture(scope="module")
def sparse_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real header, with holes for weights."""
    folder = tmp_path_factory.mktemp("gguf")
    work = prepare(random_checkpoint(folder / "model", "mixtral"), find_quants(["q4_k_m"]))
    file = work.layouts[0].files[0]
    path = folder / file.name
    path.write_bytes(file.header)
    with path.open("r+b") as stream:
        stream.truncate(file.n_bytes)
    return path


def test_agrees_with_gguf_py(sparse_gguf: Path) -> None:
    ours, theirs = read_header(sparse_gguf), GGUFReader(sparse_gguf)
    assert [t.name for t in ours.tensors] == [t.name for t in theirs.tensors]
    for our, their in zip(ours.tensors, theirs.tensors, strict=True):
        assert list(reversed(our.shape)) == their.shape.tolist()
        assert our.encoding.name == their.tensor_type.name
        assert (our.n_elements, our.n_bytes) == (their.n_elements, their.n_bytes)
        assert ours.data_offset + our.offset == their.data_offset
    keys = [key for key in theirs.fields if not key.startswith("GGUF.")]
    assert list(ours.metadata) == keys
    for key in keys:
        assert ours.metadata[key] == theirs.fields[key].contents()


@settings(max_examples=150, derandomize=True, deadline=None)
@given(data=st.data())
def test_damage_is_an_error_or_another_header(
    sparse_gguf: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(sparse_gguf.read_bytes()[:40_000])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            at = data.draw(st.integers(0, len(content) - 1))
            content[at] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path_factory.getbasetemp() / "damaged.gguf"
    damaged.write_bytes(content)
    with contextlib.suppress(GGUFError):
        read_header(damaged)


def test_a_file_cut_short_says_by_how_much(sparse_gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(sparse_gguf.read_bytes()[:-100])
    with pytest.raises(GGUFError, match=r"cut\.gguf .* ends \d+ bytes before"):
        read_header(cut)


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "notes.gguf"
    other.write_text("GGML is not GGUF")
    with pytest.raises(GGUFError, match="does not start with GGUF"):
        read_header(other)
    with pytest.raises(GGUFError, match="cannot be read"):
        read_header(tmp_path / "absent.gguf")
