"""Reading what torch.save wrote: the same bytes, and nothing run, whatever a pickle asks for."""

import collections
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from quantkit.checkpoint.pth import read_pth
from quantkit.checkpoint.rows import read_stored
from quantkit.core.errors import CheckpointError


def test_tensors_have_the_bytes_that_torch_saved(tmp_path: Path) -> None:
    shared = torch.randn(6, 4)
    state = collections.OrderedDict(
        whole=torch.randn(3, 5).bfloat16(),
        half=torch.randn(7).half(),
        rows=shared[2:4],  # a view: an offset into a storage that it shares
        shared=shared,
    )
    torch.save(state, tmp_path / "a.pth")
    found = read_pth(tmp_path / "a.pth")
    assert list(found) == list(state)
    for name, tensor in found.items():
        raw = read_stored(tensor, 0, tensor.n_bytes // tensor.row_bytes)
        assert tensor.shape == tuple(state[name].shape)
        assert raw.tobytes() == state[name].reshape(-1).view(torch.uint8).numpy().tobytes()


def test_a_state_dict_of_a_module_is_taken(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "a.pth")  # it carries _metadata
    assert set(read_pth(tmp_path / "a.pth")) == {"weight", "bias"}


def test_parameters_and_every_kind_of_number_are_taken(tmp_path: Path) -> None:
    state = {
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "trained_no_more": torch.nn.Parameter(torch.randn(2).half(), requires_grad=False),
        "mask": torch.ones(3, 3, dtype=torch.bool),
        "ids": torch.arange(5),
        "doubles": torch.randn(2, dtype=torch.float64),
        "bytes": torch.zeros(7, dtype=torch.uint8),
    }
    torch.save(state, tmp_path / "a.pth")
    found = read_pth(tmp_path / "a.pth")
    assert [t.dtype for t in found.values()] == ["F32", "F16", "BOOL", "I64", "F64", "U8"]
    for name, tensor in found.items():
        values = state[name].detach()
        assert tensor.n_bytes == values.numel() * values.element_size()
        raw = tensor.file.read_bytes()[tensor.offset : tensor.offset + tensor.n_bytes]
        assert raw == values.reshape(-1).view(torch.uint8).numpy().tobytes()


class _Evil:
    """Unpickled, it calls what it was made with."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_nothing_in_a_malicious_pickle_runs(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    calls = [
        (os.system, f"touch {mark}"),
        (open, str(mark), "w"),
        (eval, f"open({str(mark)!r}, 'w')"),
        (os.mkdir, str(mark)),
        (pickle.loads, pickle.dumps(_Evil(os.mkdir, str(mark)))),
        (getattr, "", "join"),
    ]
    for function, *arguments in calls:
        for state in (
            {"w": torch.zeros(2), "x": _Evil(function, *arguments)},
            _Evil(function, *arguments),
        ):
            torch.save(state, tmp_path / "evil.pth")
            with pytest.raises(CheckpointError, match="which no weights need, and was not run"):
                read_pth(tmp_path / "evil.pth")
            assert not mark.exists()
    # The payload is real: plain pickle runs it.
    with zipfile.ZipFile(tmp_path / "evil.pth") as archive:
        assert archive.read("evil/data.pkl")
    pickle.loads(pickle.dumps(_Evil(os.mkdir, str(mark))))  # noqa: S301 - that is the point
    assert mark.exists()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.", "posix.system"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNt)R.", "damaged|described"),
        # BUILD on what stands for a function: it has nothing that could be changed
        (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__call__NsbN.",
            "not a dictionary",
        ),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "damaged"),  # NEWOBJ wants a class
        (b"\x80\x02(lp0\n.", "no tensors by name"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "is not a tensor"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "other than a storage"),
        (b"garbage", "damaged"),
    ],
)
def test_programs_that_are_no_weights_are_refused(
    tmp_path: Path, program: bytes, reason: str
) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(CheckpointError, match=reason):
        read_pth(path)


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"no zip at all")
    with pytest.raises(CheckpointError, match="not a sound zip file"):
        read_pth(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_pth(tmp_path / "absent.pth")
    torch.save({"w": torch.zeros(4, 2).T}, path)
    with pytest.raises(CheckpointError, match="a view whose rows do not lie"):
        read_pth(path)
    torch.save({"w": torch.zeros(4, dtype=torch.complex64)}, path)
    with pytest.raises(CheckpointError, match="ComplexFloatStorage"):
        read_pth(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        read_pth(path)
    torch.save({"w": torch.zeros(4), "step": 3}, path)
    with pytest.raises(CheckpointError, match="'step' is not a tensor"):
        read_pth(path)


def rewrite(path: Path, change: Callable[[str, bytes], bytes], compression: int = 0) -> None:
    """Write a zip anew, as Python does: data are not aligned, and no descriptors follow them."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))


def as_it_is(_name: str, data: bytes) -> bytes:
    return data


def set_in_directory(path: Path, entry: str, field: int, value: int, n_bytes: int = 4) -> None:
    """Change a number in the central directory, ``field`` bytes behind an entry's beginning."""
    data = bytearray(path.read_bytes())
    start = data.rfind(b"PK\x01\x02", 0, data.rfind(entry.encode()))
    data[start + field : start + field + n_bytes] = value.to_bytes(n_bytes, "little")
    path.write_bytes(data)


def test_zips_of_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.arange(8.0), "v": torch.arange(3.0)}, path)
    rewrite(path, as_it_is)
    for limit in (2**31, 10):  # above which zipfile writes 64-bit sizes, which large files have
        with patch("zipfile.ZIP64_LIMIT", limit):
            rewrite(path, as_it_is)
        found = read_pth(path)
        assert read_stored(found["w"], 0, 1).tobytes() == torch.arange(8.0).numpy().tobytes()
        assert read_stored(found["v"], 0, 1).tobytes() == torch.arange(3.0).numpy().tobytes()
    assert b"PK\x06\x06" in path.read_bytes()  # of a directory with 64-bit offsets


@pytest.mark.parametrize("n_bytes", [28, 36])
def test_storages_of_another_size_are_refused(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.arange(8.0)}, path)
    rewrite(path, lambda name, data: bytes(n_bytes) if "/data/" in name else data)
    with pytest.raises(CheckpointError, match=f"'w' has {n_bytes} bytes instead of the 32 that"):
        read_pth(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_nothing_is_inflated(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.arange(8.0)}, path)
    rewrite(path, as_it_is, compression)
    with pytest.raises(CheckpointError, match="compressed or encrypted"):
        read_pth(path)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (8, 0x809, "compressed or encrypted"),
        (10, 8, "compressed or encrypted"),
        (20, 31, "two sizes"),
        (24, 33, "two sizes"),
        (42, 2**31, "beyond its end"),
    ],
)
def test_a_directory_that_lies_is_refused(
    tmp_path: Path, field: int, value: int, reason: str
) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.arange(8.0)}, path)
    set_in_directory(path, "/data/0", field, value, 2 if field < 20 else 4)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_pth(path)
    assert str(caught.value).count(". ") == 0


def test_a_giant_directory_is_not_read(tmp_path: Path) -> None:
    """Its size is a number of the file's, and as much could be there: a hole in the file."""
    path = tmp_path / "a.pth"
    size = 2**31
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size, 0, 0)
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(end)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="not a sound zip"):
        read_pth(path)
    assert tracemalloc.get_traced_memory()[1] < 20 * 10**6
    tracemalloc.stop()


def test_storages_that_overlap_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.arange(8.0), "v": torch.ones(8)}, path)
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo("a/data/0").header_offset
    set_in_directory(path, "/data/1", 42, first)
    with pytest.raises(CheckpointError, match="two of its storages overlap"):
        read_pth(path)


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.arange(8.0), "v": torch.ones(8)}, path)
    data = path.read_bytes()
    at = data.rfind(b"/data/1")
    path.write_bytes(data[:at] + b"/data/0" + data[at + 7 :])
    with pytest.raises(CheckpointError, match="two entries of one name"):
        read_pth(path)


def test_views_are_taken_where_they_lie_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    whole = torch.arange(24.0).reshape(6, 4)
    state = {
        "whole": whole,
        "tied": whole,
        "rows": whole[2:5],
        "one": whole[3, 1],  # a number: no dimensions
        "none": whole[:0],
        "flat": whole.view(-1)[5:9],
        "deeper": whole[1:3].view(1, 2, 4),
    }
    torch.save(state, path)
    found = read_pth(path)
    data = path.read_bytes()
    for name, value in state.items():
        tensor = found[name]
        assert tensor.shape == tuple(value.shape)
        raw = data[tensor.offset : tensor.offset + tensor.n_bytes]
        assert raw == value.contiguous().numpy().tobytes()
    assert found["tied"].offset == found["whole"].offset
    for name, value in {
        "turned": whole.T,
        "columns": whole[:, 1:3],
        "every other": whole[::2],
        "spread": whole[:1].expand(6, 4),
        "negative": torch.as_strided(whole, (2, 2), (1, 1)),
    }.items():
        torch.save({name: value}, path)
        with pytest.raises(CheckpointError, match=f"'{name}' as a view.*again with safetensors"):
            read_pth(path)


def test_a_file_of_an_older_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.arange(8.0)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(
        CheckpointError, match=r"a\.pth was saved by a PyTorch before 1\.6.*with safetensors\.$"
    ):
        read_pth(path)


# Storage "0" of eight floats, as a program says it, and a tensor of them.
_STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x08tQ"
)
_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + _STORAGE + b"K\x00K\x08\x85K\x01\x85tR"
_DOUBLED = b"".join(
    b"r" + n.to_bytes(4, "little") + b"j" + n.to_bytes(4, "little") + b"\x86" for n in range(60)
)


def state_of(value: bytes) -> bytes:
    return b"\x80\x02}X\x01\x00\x00\x00w" + value + b"s."


def as_pth(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", bytes(32))
    return path


def test_the_programs_below_differ_from_one_that_is_sound(tmp_path: Path) -> None:
    assert read_pth(as_pth(tmp_path / "a.pth", state_of(_TENSOR)))["w"].shape == (8,)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (state_of(b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R"), "builtins.eval"),
        (state_of(b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R"), "os.system"),
        # the hash of a tuple a million deep ends the process, one of 2**60 parts never ends
        (b"\x80\x02}N" + b"\x85" * 10**6 + b"Ns.", "keys are no names"),
        (b"\x80\x02}N\x85" + _DOUBLED + b"Ns.", "keys are no names"),
        (b"\x80\x02}(N\x85" + _DOUBLED + b"Nu.", "keys are no names"),
        (b"\x80\x02(N\x85" + _DOUBLED + b"Nd.", "keys are no names"),
        # a tensor's shape, once it was checked
        (state_of(_TENSOR + b"(NK\x00(J\xff\xff\xff\xff)tb"), "not a dictionary"),
        (state_of(_TENSOR.replace(b"K\x00K\x08\x85", b"K\x01K\x08\x85")), "beyond its storage"),
        (state_of(_TENSOR.replace(b"K\x00K\x08\x85", b"K\x00K\x09\x85")), "beyond its storage"),
        (state_of(_TENSOR.replace(b"K\x00K", b"J\xff\xff\xff\xffK")), "not described"),
        (state_of(_TENSOR.replace(b"cpuK\x08", b"cpuK\x09")), "32 bytes instead of the 36"),
        (state_of(_TENSOR.replace(b"\x000X", b"\x001X")), "the storage of 'w' is missing"),
        # lists that are copied as often as two bytes say so
        (state_of(b"ccollections\nOrderedDict\n]X\x01\x00\x00\x00aN\x86a\x85R"), "damaged"),
        (state_of(b"]" * 300_000 + b"a" * 299_999), "'w' is not a tensor"),
        (state_of(_TENSOR) + bytes(4 * 10**6), "over 4,000,000 bytes"),
    ],
    ids=range(15),
)
def test_programs_that_take_more_than_they_give(
    tmp_path: Path, program: bytes, reason: str
) -> None:
    path = as_pth(tmp_path / "a.pth", program)
    with pytest.raises(CheckpointError, match=reason):
        read_pth(path)
