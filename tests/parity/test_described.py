"""Checkpoints that llama.cpp's converter describes, whole files against converter and quantizer."""

from pathlib import Path

import pytest

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.converter.describe import Wish
from quantkit.checkpoint.gguf_source import open_gguf
from quantkit.checkpoint.open import open_checkpoint, open_model
from quantkit.families import is_known
from quantkit.families.model import Model
from quantkit.plan.plan import make_plan
from quantkit.plan.quants import Quant, find_quants
from tests.architectures.ggufs import (
    options_of,
    small_checkpoints,
    small_ggufs,
    stored_checkpoints,
    stored_ggufs,
)
from tests.architectures.small import SMALL
from tests.architectures.stored import STORED
from tests.architectures.tree import lenient_tree
from tests.build.builds import small_slabs
from tests.parity.both_ways import NEED_IMATRIX, PLAIN_QUANTS, Source

pytestmark = pytest.mark.native

FOREIGN = tuple(n for n in SMALL if not is_known({"architectures": [SMALL[n].model]}))
CONVERTED = tuple(name for name in STORED if STORED[name].refused is None)
# Elements of a slab: some rows of a matrix, so that what is computed is computed in parts.
SLAB = 5000
BLOCKS = {"MXFP4", "NVFP4"}
# Forms that config.json does not name, whose numbers bf16 does not hold either.
ROUNDED = {"bitnet"}
# llama-quantize's own aborts (see test_gguf_sources.buildable).
ABORTS = {"q1_0"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lenient_tree(tmp_path_factory)


def describe(checkpoint: Path, name: str, tree: Path) -> Checkpoint:
    mtp = False if "--no-mtp" in options_of(name) else None
    found = open_checkpoint(checkpoint, Wish(tree, mtp=mtp))
    assert found.description is not None
    return found


def close(checkpoint: Checkpoint) -> None:
    """End the converter's process, if there is one."""
    assert checkpoint.description is not None
    checkpoint.description.rows.close()


@pytest.mark.parametrize("name", FOREIGN)
def test_every_architecture(
    name: str, tree: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """bf16, and two quants that go round: whole files, keys included."""
    gguf = small_ggufs(tmp_path_factory, FOREIGN)[name]
    checkpoint = describe(small_checkpoints(tmp_path_factory, FOREIGN)[name], name, tree)
    try:
        with small_slabs(SLAB):
            Source(checkpoint, gguf, mended(checkpoint)).compare(quants_of(name, gguf), tmp_path)
    finally:
        close(checkpoint)


def mended(checkpoint: Checkpoint) -> dict[str, str]:
    """The keys in which the converter contradicts the tokenizer, which tests of tokens judge."""
    assert checkpoint.description is not None
    keys = checkpoint.description.tokens.mended
    return {f"key {key}": "the checkpoint's own tokenizer has it otherwise" for key in keys}


def quants_of(name: str, gguf: Path) -> list[str]:
    """Two that llama-quantize makes of a model, and its unquantized type."""
    if stored_blocks(gguf):
        return ["mxfp4_moe"]
    usual = [q for q in PLAIN_QUANTS if q not in {*NEED_IMATRIX, *ABORTS, "bf16"}]
    first = 2 * FOREIGN.index(name)
    return ["bf16", *(usual[(first + n) % len(usual)] for n in range(2))]


def stored_blocks(gguf: Path) -> bool:
    return any(tensor.dtype in BLOCKS for tensor in open_gguf(gguf).tensors.values())


@pytest.mark.parametrize("name", CONVERTED)
def test_stored_forms(
    name: str, tree: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Types are those of the converter's bf16. Bytes, too, unless it rounds what is computed."""
    is_rounded = STORED[name].quantization or STORED[name].older_quantization or name in ROUNDED
    bf16 = stored_ggufs(tmp_path_factory, CONVERTED, "bf16")[name]
    checkpoint = describe(stored_checkpoints(tmp_path_factory, CONVERTED)[name], name, tree)
    try:
        ours, theirs = open_model(checkpoint), open_model(open_gguf(bf16))
        for quant in find_quants(["q4_k_m", "q2_k", "mxfp4_moe", "bf16"]):
            assert types(ours, quant) == types(theirs, quant), quant.name
        reference = bf16
        if is_rounded:
            reference = stored_ggufs(tmp_path_factory, CONVERTED, "f32")[name]
        again = stored_blocks(reference)
        source = Source(checkpoint, reference, mended(checkpoint), requantize=again)
        with small_slabs(SLAB):
            source.compare(["q4_k_m", "q8_0"], tmp_path)
    finally:
        close(checkpoint)


def types(model: Model, quant: Quant) -> list[tuple[str, str, tuple[int, ...]]]:
    plan = make_plan(model, quant)
    return [(t.target.name, t.encoding.name, t.target.shape) for t in plan.tensors]
