"""Importance matrices that are read, and those that are refused."""

import os
import random
from pathlib import Path

import numpy as np
import pytest

from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.core.errors import ImatrixError
from quantkit.families.model import Target
from tests.imatrix_writer import legacy_imatrix, write_gguf_imatrix

Q, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"


def refusal(path: Path) -> str:
    """The one sentence that a file is refused with; it begins with the file's path."""
    with pytest.raises(ImatrixError) as caught:
        load_imatrix(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert "\n" not in message
    return message


# --- what is read ----------------------------------------------------------------------------


def test_gguf_holds_sums_and_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    q, up = rng.random((1, 64), np.float32), rng.random((3, 32), np.float32)
    path = write_gguf_imatrix(
        tmp_path / "imatrix.gguf",
        {Q: (q, np.array([7])), EXPERTS: (up, np.array([2, 0, 5]))},
        datasets=["wiki.txt", "more.txt"],
        chunk_count=12,
    )
    imatrix = load_imatrix(path)
    assert imatrix.path == path
    assert (imatrix.chunk_count, imatrix.datasets) == (12, ("wiki.txt", "more.txt"))
    assert set(imatrix.entries) == {Q, EXPERTS}
    assert np.array_equal(imatrix.entries[Q], (q / np.float32(7)).ravel())
    # No token reached the second expert: all of its columns matter the same.
    means = [up[0] / np.float32(2), np.ones(32, np.float32), up[2] / np.float32(5)]
    assert np.array_equal(imatrix.entries[EXPERTS], np.concatenate(means))


def test_counts_are_rounded_halves_up(tmp_path: Path) -> None:
    sums = np.full((4, 32), 6, np.float32)
    path = write_gguf_imatrix(
        tmp_path / "imatrix.gguf", {EXPERTS: (sums, np.array([2.5, 2.4, 0.4, 0]))}
    )
    assert load_imatrix(path).entries[EXPERTS].reshape(4, 32)[:, 0].tolist() == [2, 3, 1, 1]


@pytest.mark.parametrize(
    ("ending", "chunks", "datasets"),
    [
        (None, 4, ("text.txt",)),
        (b"", 0, ()),
        (b"\5\0\0\0", 5, ()),
        (b"\5\0\0\0\0\0\0\0", 5, ()),
        (b"\5\0\0\0\2\0\0\0a\0", 5, ("a",)),
    ],
)
def test_the_old_format_holds_values_times_calls(
    tmp_path: Path, ending: bytes | None, chunks: int, datasets: tuple[str, ...]
) -> None:
    values = np.arange(64, dtype=np.float32)
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy_imatrix({Q: (values, 3), EXPERTS: (values, 0)}, ending))
    imatrix = load_imatrix(path)
    assert np.array_equal(imatrix.entries[Q], values / np.float32(3))
    assert np.array_equal(imatrix.entries[EXPERTS], values)
    assert (imatrix.chunk_count, imatrix.datasets) == (chunks, datasets)


def test_columns_are_those_of_the_target(tmp_path: Path) -> None:
    values = np.arange(96, dtype=np.float32)
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy_imatrix({EXPERTS: (values, 0), "token_embd.weight": (values, 0)}))
    imatrix = load_imatrix(path)

    columns = imatrix.columns_of(Target(EXPERTS, "ffn_up_exps", (3, 8, 32)))
    assert columns is not None
    assert np.array_equal(columns, values.reshape(3, 32))
    assert imatrix.columns_of(Target(Q, "attn_q", (8, 32))) is None
    assert imatrix.columns_of(Target("token_embd.weight", "token_embd", (50, 32))) is None
    for shape in ((4, 8, 32), (3, 8, 64), (8, 32)):
        with pytest.raises(ImatrixError, match=r"has 96 values for .* made for another model"):
            imatrix.columns_of(Target(EXPERTS, "ffn_up_exps", shape))


# --- what is refused -------------------------------------------------------------------------


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.gguf")
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe" in refusal(tmp_path / "pipe")
    assert "is a device" in refusal(Path("/dev/zero"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    values = np.ones((1, 64), np.float32)
    values[0, 9] = value
    gguf = write_gguf_imatrix(tmp_path / "a.gguf", {Q: (values, np.array([3]))})
    legacy = tmp_path / "a.dat"
    legacy.write_bytes(legacy_imatrix({Q: (values, 3)}))
    for path in (gguf, legacy):
        assert f"has a NaN or infinite importance for '{Q}'" in refusal(path)


def test_values_and_counts_below_zero(tmp_path: Path) -> None:
    values = np.ones((1, 64), np.float32)
    counted = write_gguf_imatrix(tmp_path / "counts.gguf", {Q: (values, np.array([-3]))})
    assert f"counts for '{Q}' that are no counts" in refusal(counted)
    values[0, 9] = -1e-6
    gguf = write_gguf_imatrix(tmp_path / "a.gguf", {Q: (values, np.array([3]))})
    legacy = tmp_path / "a.dat"
    legacy.write_bytes(legacy_imatrix({Q: (values, 3)}))
    for path in (gguf, legacy):
        assert f"has a negative importance for '{Q}'" in refusal(path)


def test_the_old_format_cut_anywhere(tmp_path: Path) -> None:
    whole = legacy_imatrix({Q: (np.ones(8), 3), EXPERTS: (np.ones(4), 3)}, b"")
    path = tmp_path / "imatrix.dat"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert "not an importance matrix" in refusal(path)
    path.write_bytes(legacy_imatrix({Q: (np.ones(8), 3)})[:-1])
    assert "cut short" in refusal(path)


def test_the_old_format_with_numbers_of_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy_imatrix({}))
    assert "not an importance matrix" in refusal(path)
    path.write_bytes(legacy_imatrix({Q: (np.ones(0), 3)}))
    assert f"no values for '{Q}'" in refusal(path)
    path.write_bytes(b"Once upon a time there was a text.")
    assert "not an importance matrix" in refusal(path)


def test_gguf_cut_anywhere(tmp_path: Path) -> None:
    entries = {Q: (np.ones((1, 32)), np.ones(1)), EXPERTS: (np.ones((2, 32)), np.ones(2))}
    whole = write_gguf_imatrix(tmp_path / "whole.gguf", entries).read_bytes()
    path = tmp_path / "imatrix.gguf"
    padding = 24  # bytes after the last count
    for length in range(len(whole) - padding):
        path.write_bytes(whole[:length])
        refusal(path)


def test_gguf_with_any_byte_changed_is_read_or_refused(tmp_path: Path) -> None:
    whole = write_gguf_imatrix(
        tmp_path / "whole.gguf", {Q: (np.ones((1, 32)), np.ones(1))}
    ).read_bytes()
    path, rng = tmp_path / "imatrix.gguf", random.Random(1)
    refused = []
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= rng.choice((1, 0x80, 0xFF))
        path.write_bytes(damaged)
        try:
            load_imatrix(path)
        except ImatrixError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all(message.startswith(str(path)) for message in refused)


def test_other_gguf_files(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor(Q, np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert refusal(path) == f"{path} is a GGUF file but no importance matrix."
    assert "no importance matrix" in refusal(write_gguf_imatrix(tmp_path / "empty.gguf", {}))


def test_sums_and_counts_that_do_not_match(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_gguf_imatrix(path, {Q: (np.ones((1, 32)), np.ones(3))})
    assert f"has 32 sums but 3 counts for '{Q}'" in refusal(path)

    # The name of the counts is now another's.
    whole = write_gguf_imatrix(path, {Q: (np.ones((1, 32)), np.ones(1))}).read_bytes()
    path.write_bytes(whole.replace(b"attn_q.weight.counts", b"attn_k.weight.counts"))
    assert "has no matching sums and counts for 'blk.0.attn_" in refusal(path)
