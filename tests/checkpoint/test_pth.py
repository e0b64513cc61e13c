"""Reading what torch.save wrote: the same bytes, and nothing run, whatever a pickle asks for."""

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
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
            "no dictionary",
        ),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "damaged"),  # NEWOBJ wants a class
        (b"\x80\x02(lp0\n.", "no tensors by name"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "is no tensor"),
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
    with pytest.raises(CheckpointError, match="no sound zip file"):
        read_pth(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_pth(tmp_path / "absent.pth")
    torch.save({"w": torch.zeros(4, 2).T}, path)
    with pytest.raises(CheckpointError, match="not contiguous"):
        read_pth(path)
    torch.save({"w": torch.zeros(4, dtype=torch.complex64)}, path)
    with pytest.raises(CheckpointError, match="ComplexFloatStorage"):
        read_pth(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        read_pth(path)
    torch.save({"w": torch.zeros(4), "step": 3}, path)
    with pytest.raises(CheckpointError, match="'step' is no tensor"):
        read_pth(path)


def test_storages_are_not_read_beyond_their_end(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.arange(8.0)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for compression, data, reason in (
        (zipfile.ZIP_STORED, np.zeros(7, "<f4").tobytes(), "beyond its storage"),
        (zipfile.ZIP_DEFLATED, np.zeros(8, "<f4").tobytes(), "compressed"),
    ):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", compression) as archive:
            for name, content in entries.items():
                archive.writestr(name, data if "/data/" in name else content)
        path.write_bytes(out.getvalue())
        with pytest.raises(CheckpointError, match=reason):
            read_pth(path)
