"""Checkpoints that llama.cpp's converter describes, whole files against converter and quantizer."""

from pathlib import Path

import pytest

from quantkit.building.engine import build
from quantkit.building.work import prepare
from quantkit.checkpoint.converter.describe import describe_by_converter
from quantkit.checkpoint.converter.wish import ConverterOptions
from quantkit.checkpoint.folder import list_folder, open_folder
from quantkit.checkpoint.open import open_checkpoint
from quantkit.planning.quants import find_quants
from tests.architectures.ggufs import small_checkpoints
from tests.architectures.tree import lenient_tree
from tests.parity.compare import differences
from tests.parity.described import USUAL, close, compare_architecture, mended

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("shared_converter")]

TINY = Path(__file__).resolve().parents[1] / "checkpoints"


@pytest.mark.parametrize("name", USUAL)
def test_architectures_that_people_bring(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    compare_architecture(name, USUAL, tmp_path, tmp_path_factory)


@pytest.mark.parametrize("name", ["tiny-mistral", "tiny-mixtral", "llama"])
def test_our_families_agree(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What a family of ours says of a model, the converter says as well."""
    folder = TINY / name
    if not folder.exists():
        folder = small_checkpoints(tmp_path_factory, [name])[name]
    ours = open_checkpoint(folder)
    theirs = describe_by_converter(
        open_folder(folder, list_folder(folder)), ConverterOptions(lenient_tree(tmp_path_factory))
    )
    assert ours.description is None
    try:
        quants = find_quants(["bf16", "q4_k_m"])
        both = [build(prepare(c, quants), tmp_path / str(n), jobs=2, max_memory=2**30)
                for n, c in enumerate((ours, theirs))]  # fmt: skip
        for one, other in zip(*both, strict=True):
            same = one.path.read_bytes() == other.path.read_bytes()
            found = [] if same else differences(one.path, other.path)
            assert {line.partition(":")[0] for line in found} == set(mended(theirs)), found
    finally:
        close(theirs)
