"""Importance matrices that are added up and continued."""

from pathlib import Path

import numpy as np
import pytest

from quantkit.checkpoint.gathered import (
    RawSums,
    add_earlier,
    add_sums,
    as_imatrix,
    load_sums,
    write_gathered,
)
from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.checkpoint.imatrix_file import write_imatrix
from quantkit.core.errors import ImatrixError
from tests.imatrix_writer import legacy_imatrix

CONTEXT = 64
DENSE, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"


def write(path: Path, seed: int, experts: int = 3, columns: int = 5) -> dict[str, RawSums]:
    random = np.random.default_rng(seed)

    def some(matrices: int) -> RawSums:
        counts = random.integers(0, 100, matrices).astype(np.float32)
        squares = random.random((matrices, columns), np.float32) * counts[:, None]
        return RawSums(squares.astype(np.float32), counts)

    entries = {DENSE: RawSums(some(1).squares, np.array([2 * CONTEXT], np.float32))}
    entries[EXPERTS] = some(experts)
    write_imatrix(path, entries, [path.name], 2, CONTEXT, {})
    return entries


def test_sums_and_counts_add_up(tmp_path: Path) -> None:
    files = [tmp_path / "a.gguf", tmp_path / "b.gguf", tmp_path / "c.gguf"]
    parts = [write(file, seed) for seed, file in enumerate(files)]
    together = add_sums([(file, load_sums(file, 512)) for file in files])
    assert together.datasets == ("a.gguf", "b.gguf", "c.gguf")
    assert (together.chunk_count, together.context) == (6, CONTEXT)
    for name, sums in together.entries.items():
        expected = (parts[0][name].squares + parts[1][name].squares) + parts[2][name].squares
        assert (sums.squares == expected).all()
        assert (sums.counts == sum(part[name].counts for part in parts)).all()
    written = tmp_path / "sum.gguf"
    write_gathered(written, together)
    read, foreseen = load_imatrix(written), as_imatrix(written, together)
    assert (read.chunk_count, read.datasets) == (foreseen.chunk_count, foreseen.datasets)
    assert all((read.entries[name] == foreseen.entries[name]).all() for name in read.entries)


def test_an_entry_that_only_one_has_is_kept(tmp_path: Path) -> None:
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    parts = write(first, 0)
    write_imatrix(second, {DENSE: parts[DENSE]}, ["b"], 2, CONTEXT, {})
    assert add_earlier(second, [first], CONTEXT) == 4
    found = load_sums(second, CONTEXT).entries
    assert (found[EXPERTS].squares == parts[EXPERTS].squares).all()
    assert (found[DENSE].squares == 2 * parts[DENSE].squares).all()


def test_the_old_format_counts_by_sequences(tmp_path: Path) -> None:
    """Its means are taken back to sums by the tokens of a sequence."""
    old, new = tmp_path / "old.dat", tmp_path / "new.gguf"
    values = np.arange(1, 6, dtype=np.float64)
    old.write_bytes(legacy_imatrix({DENSE: (values, 3)}))
    found = load_sums(old, CONTEXT).entries[DENSE]
    assert found.counts == [3 * CONTEXT]
    np.testing.assert_allclose(
        found.squares[0] / found.counts, load_imatrix(old).entries[DENSE], rtol=1e-6
    )
    parts = write(new, 0)
    add_earlier(new, [old], CONTEXT)
    assert load_sums(new, CONTEXT).entries[DENSE].counts == [5 * CONTEXT]
    assert (load_sums(new, CONTEXT).entries[EXPERTS].counts == parts[EXPERTS].counts).all()


def test_one_count_for_all_experts_is_each_ones(tmp_path: Path) -> None:
    """As old files have it, and as llama-imatrix takes them."""
    one, many = tmp_path / "one.gguf", tmp_path / "many.gguf"
    parts = write(many, 0)
    single = RawSums(np.ones((1, 15), np.float32), np.array([7], np.float32))
    write_imatrix(one, {EXPERTS: single}, ["one"], 1, CONTEXT, {})
    add_earlier(many, [one], CONTEXT)
    found = load_sums(many, CONTEXT).entries[EXPERTS]
    assert (found.counts == parts[EXPERTS].counts + 7).all()
    assert (found.squares == parts[EXPERTS].squares + 1).all()


@pytest.mark.parametrize(("experts", "columns"), [(4, 5), (3, 6)])
def test_those_of_several_models_are_refused(experts: int, columns: int, tmp_path: Path) -> None:
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    write(first, 0)
    write(second, 1, experts, columns)
    before = second.read_bytes()
    with pytest.raises(ImatrixError, match=r"b\.gguf has .* made for other models"):
        add_earlier(second, [first], CONTEXT)
    assert second.read_bytes() == before
