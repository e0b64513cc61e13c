"""Our GGUF header reader: agrees with gguf-py, and survives any damage."""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.building.work import prepare
from quantkit.checkpoint.gguf import read_header
from quantkit.core.errors import GGUFError
from quantkit.planning.quants import find_quants
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
    with pytest.raises(GGUFError, match="does not exist"):
        read_header(tmp_path / "absent.gguf")


# --- headers that make no sense --------------------------------------------------------------


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _tensor(name: str, dims: Sequence[int], offset: int, kind: int = 0) -> bytes:
    sizes = b"".join(struct.pack("<Q", size) for size in dims)
    return _string(name) + struct.pack("<I", len(dims)) + sizes + struct.pack("<IQ", kind, offset)


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + value


def _gguf(
    tensors: Sequence[bytes] = (),
    entries: Sequence[bytes] = (),
    counts: tuple[int, int] | None = None,
) -> bytes:
    n_tensors, n_entries = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_entries)
    return head + b"".join(entries) + b"".join(tensors) + bytes(4096)


_UINT32, _STRING, _ARRAY = 4, 8, 9
NONSENSE = {
    "two tensors of one name": (
        _gguf([_tensor("a", [8], 0), _tensor("a", [8], 32)]),
        "two tensors 'a'",
    ),
    "overlapping": (_gguf([_tensor("a", [16], 0), _tensor("b", [8], 32)]), "'b' overlaps"),
    "unaligned": (_gguf([_tensor("a", [8], 4)]), "'a' lies at 4, unaligned"),
    "a dimension of 0": (_gguf([_tensor("a", [8, 0], 0)]), "dimensions .8, 0."),
    "huge dimensions": (_gguf([_tensor("a", [2**62] * 4, 0)]), "'a' has the dimensions"),
    "a key twice": (_gguf(entries=[_entry("k", _UINT32, bytes(4))] * 2), "key 'k' twice"),
    "alignment of no power of two": (
        _gguf(entries=[_entry("general.alignment", _UINT32, struct.pack("<I", 48))]),
        "alignment is 48",
    ),
    "alignment of 0": (_gguf(entries=[_entry("general.alignment", _UINT32, bytes(4))]), "is 0"),
    "2**62 tensors": (_gguf(counts=(2**62, 0)), "claims 4611686018427387904 tensors"),
    "2**62 keys": (_gguf(counts=(0, 2**62)), "claims 0 tensors and 4611686018427387904 keys"),
    "an array of 2**62 numbers": (
        _gguf(entries=[_entry("k", _ARRAY, struct.pack("<IQ", _UINT32, 2**62))]),
        "more than .* numbers",
    ),
    "an array of 2**62 texts": (
        _gguf(entries=[_entry("k", _ARRAY, struct.pack("<IQ", _STRING, 2**62))]),
        "more than .* texts",
    ),
    "a text longer than the file": (
        _gguf(entries=[_entry("k", _STRING, struct.pack("<Q", 2**62))]),
        "runs past its end",
    ),
    "a name with escape codes": (
        _gguf([_tensor("\x1b[2J\n" + "a" * 3000, [0], 0)]),
        r"\\x1b\[2J\\na+\.\.\.a+' has the dimensions",
    ),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, pattern = NONSENSE[case]
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(GGUFError, match=pattern) as caught:
        read_header(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_a_header_without_end_is_not_read_to_it(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**33))
    os.truncate(path, 20 * 10**9)  # sparse
    with pytest.raises(GGUFError, match="its header has more than"):
        read_header(path)
