"""Stored forms that llama.cpp's converter reads, whole files against converter and quantizer."""

from pathlib import Path

import pytest

from quantkit.checkpoint.gguf_source import open_gguf
from quantkit.checkpoint.open import open_model
from quantkit.families.model import Model
from quantkit.plan.plan import make_plan
from quantkit.plan.quants import Quant, find_quants
from tests.architectures.ggufs import stored_checkpoints, stored_ggufs
from tests.architectures.stored import STORED
from tests.architectures.tree import lenient_tree
from tests.build.builds import small_slabs
from tests.parity.both_ways import Source
from tests.parity.described import SLAB, close, compare_source, describe, mended, stored_blocks

pytestmark = pytest.mark.native

# Whose vocabulary only its own code can read, which is never run here.
CODED = {"qwen-coded"}
CONVERTED = tuple(n for n in STORED if STORED[n].refused is None and n not in CODED)
# Forms that config.json does not name, whose numbers bf16 does not hold either.
ROUNDED = {"bitnet"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lenient_tree(tmp_path_factory)


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
            compare_source(checkpoint, bf16, tmp_path / "source")
            source.compare(["q4_k_m", "q8_0"], tmp_path)
    finally:
        close(checkpoint)


def types(model: Model, quant: Quant) -> list[tuple[str, str, tuple[int, ...]]]:
    plan = make_plan(model, quant)
    return [(t.target.name, t.encoding.name, t.target.shape) for t in plan.tensors]
