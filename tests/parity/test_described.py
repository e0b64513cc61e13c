"""Checkpoints that llama.cpp's converter describes, whole files against converter and quantizer."""

from pathlib import Path

import pytest

from quantkit.build.engine import build
from quantkit.build.work import prepare
from quantkit.checkpoint.converter.describe import Wish, describe_by_converter
from quantkit.checkpoint.folder import list_folder, open_folder
from quantkit.checkpoint.open import open_checkpoint
from quantkit.families import is_known
from quantkit.plan.quants import find_quants
from tests.architectures.ggufs import small_checkpoints, small_ggufs
from tests.architectures.small import SMALL
from tests.architectures.tree import lenient_tree
from tests.build.builds import small_slabs
from tests.parity.both_ways import NEED_IMATRIX, PLAIN_QUANTS, Source
from tests.parity.compare import differences
from tests.parity.described import SLAB, close, compare_source, describe, mended, stored_blocks

pytestmark = pytest.mark.native

TINY = Path(__file__).resolve().parents[1] / "checkpoints"
FOREIGN = tuple(n for n in SMALL if not is_known({"architectures": [SMALL[n].model]}))
# llama-quantize's own aborts (see test_gguf_sources.buildable).
ABORTS = {"q1_0"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lenient_tree(tmp_path_factory)


@pytest.mark.parametrize("name", FOREIGN)
def test_every_architecture(
    name: str, tree: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The converter's own file, and two quants that go round: whole files, keys included."""
    folder = small_checkpoints(tmp_path_factory, FOREIGN)[name]  # first, or they are made twice
    gguf = small_ggufs(tmp_path_factory, FOREIGN)[name]
    checkpoint = describe(folder, name, tree)
    try:
        with small_slabs(SLAB):
            compare_source(checkpoint, gguf, tmp_path / "source")
            Source(checkpoint, gguf, mended(checkpoint)).compare(quants_of(name, gguf), tmp_path)
    finally:
        close(checkpoint)


def quants_of(name: str, gguf: Path) -> list[str]:
    """Two that llama-quantize makes of a model."""
    if stored_blocks(gguf):
        return ["mxfp4_moe"]
    usual = [q for q in PLAIN_QUANTS if q not in {*NEED_IMATRIX, *ABORTS, "bf16"}]
    first = 2 * FOREIGN.index(name)
    return [usual[(first + n) % len(usual)] for n in range(2)]


@pytest.mark.parametrize("name", ["tiny-mistral", "tiny-mixtral", "llama"])
def test_our_families_agree(
    name: str, tree: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What a family of ours says of a model, the converter says as well."""
    folder = TINY / name
    if not folder.exists():
        folder = small_checkpoints(tmp_path_factory, [name])[name]
    ours = open_checkpoint(folder)
    theirs = describe_by_converter(open_folder(folder, list_folder(folder)), Wish(tree))
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
