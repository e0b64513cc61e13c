"""Importance matrices of GGUFs against llama-imatrix's: one of each kind of model."""

from pathlib import Path

import pytest

from quantkit.calibration.sources import TextSource
from quantkit.checkpoint.gathered import add_sums, load_sums
from quantkit.checkpoint.open import open_checkpoint
from quantkit.verification.imatrix import GatherOptions, gather
from tests import native_tools
from tests.calibration.runs import TINY, text_file
from tests.gguf_sources import unquantized
from tests.parity.imatrices import KINDS, compare_matrices

pytestmark = pytest.mark.native


@pytest.mark.parametrize("name", KINDS)
def test_sums_are_llama_imatrixs(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    compare_matrices(name, tmp_path, tmp_path_factory)


def test_sums_of_several_are_llama_imatrixs(tmp_path: Path) -> None:
    gguf = unquantized(TINY / "tiny-mixtral", tmp_path / "gguf")
    text = text_file(tmp_path).read_text()
    files = []
    for part in range(2):
        piece = tmp_path / f"{part}.txt"
        piece.write_text(text[part * 5000 : part * 5000 + 5000])
        wish = GatherOptions([TextSource(piece)], 2 + part, 128, threads=1)
        files.append(gather(open_checkpoint(gguf), wish, tmp_path / f"{part}.gguf").path)
    native_tools.join_imatrices(files, tmp_path / "theirs.gguf", 128)
    together = add_sums([(file, load_sums(file, 128)) for file in files])
    theirs = load_sums(tmp_path / "theirs.gguf", 128)
    assert (together.datasets, together.chunk_count) == (theirs.datasets, theirs.chunk_count)
    assert together.entries.keys() == theirs.entries.keys()
    for name, sums in theirs.entries.items():
        assert (together.entries[name].counts == sums.counts).all()
        assert (together.entries[name].squares == sums.squares).all()
