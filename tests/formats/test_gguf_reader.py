"""Our GGUF header reader: agrees with gguf-py, and survives any damage."""

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


@settings(max_examples=200, derandomize=True, deadline=None)  # time: pytest's
@given(data=st.data())
def test_damage_is_an_error_or_another_header(
    sparse_gguf: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    size = sparse_gguf.stat().st_size
    header = bytearray(sparse_gguf.read_bytes()[: read_header(sparse_gguf).data_offset])
    for _ in range(data.draw(st.integers(1, 3))):
        # The first numbers, then the vocabulary, then the table of tensors.
        end = data.draw(st.sampled_from([64, len(header)]))
        at = data.draw(st.integers(0, end - 1))
        header[at] ^= data.draw(st.integers(1, 255))
    kept = data.draw(st.one_of(st.just(size), st.integers(0, len(header)), st.integers(0, size)))
    damaged = tmp_path_factory.getbasetemp() / "damaged.gguf"
    damaged.write_bytes(header)
    with damaged.open("r+b") as stream:
        stream.truncate(kept)
    try:
        found = read_header(damaged)
    except GGUFError as error:
        message = str(error)
        assert str(damaged) in message
        assert message.endswith(".")
    else:
        assert found.data_offset <= size
        assert all(tensor.offset + tensor.n_bytes <= size for tensor in found.tensors)


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
