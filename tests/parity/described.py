"""Checkpoints as llama.cpp's converter describes them, for comparing what is built of them."""

from pathlib import Path

import pytest

from quantkit.building.engine import build
from quantkit.building.work import prepare
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.converter.wish import ConverterOptions
from quantkit.checkpoint.gguf_source import open_gguf
from quantkit.checkpoint.open import open_checkpoint, open_model
from quantkit.families import is_known
from quantkit.families.model import Model
from quantkit.planning.plan import make_plan
from quantkit.planning.quants import Quant, find_quants
from tests import native_tools
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
from tests.building.builds import small_slabs
from tests.parity.both_ways import NEED_IMATRIX, PLAIN_QUANTS, Source
from tests.parity.compare import differences

FOREIGN = tuple(n for n in SMALL if not is_known({"architectures": [SMALL[n].model]}))
# What people bring, and what is computed in its own way.
USUAL = tuple(
    name
    for name in (
        *("qwen2", "qwen3", "qwen3moe", "qwen3next", "qwen35", "qwen35moe", "gemma2", "gemma3"),
        *("gemma3n", "gemma4", "gpt-oss", "gpt-oss-mxfp4", "deepseek2", "glm4moe", "minimax-m2"),
        *("mistral3", "llama4", "phi-mini", "phimoe", "olmo2", "granite", "granitehybrid"),
        *("nemotron_h", "lfm2", "cohere2", "smollm3", "ernie4_5", "falcon-h1", "bert"),
        *("t5", "rwkv7", "kimi-linear", "apertus", "gpt2"),
    )
    if name in FOREIGN
)
# Whose vocabulary only its own code can read, which is never run here.
CODED = {"qwen-coded"}
CONVERTED = tuple(n for n in STORED if STORED[n].refused is None and n not in CODED)
# One of every form, and the wrappers that do more than hold a text model.
FORMS = tuple(
    name
    for name in (
        *("deepseek-v3-fp8", "qwen3moe-fp8", "qwen3-fp8-channel", "llama-int8", "llama-nvfp4"),
        *("qwen35-nvfp4", "qwen3-nvfp4-mixed", "qwen3moe-nvfp4-ct", "qwen3-int4-g32"),
        *("qwen3moe-int4-g64-zero", "qwen3-gptq4", "llama-bitnet", "bitnet", "mimo2-mxfp4"),
        *("kimi-k3-mxfp4", "deepseek-v4", "qwen3next-mtp", "qwen3-bin", "gemma3-vision"),
        *("qwen35moe-vision", "llama4-vision"),
    )
    if name in CONVERTED
)
# Forms that config.json does not name, whose numbers bf16 does not hold either.
ROUNDED = {"bitnet"}
# llama-quantize's own aborts (see test_gguf_sources.buildable).
ABORTS = {"q1_0"}
# Elements of a slab: some rows of a matrix, so that what is computed is computed in parts.
SLAB = 5000
_BLOCKS = {"MXFP4", "NVFP4"}


def describe(checkpoint: Path, name: str, tree: Path) -> Checkpoint:
    mtp = False if "--no-mtp" in options_of(name) else None
    return open_checkpoint(checkpoint, ConverterOptions(tree, mtp=mtp))


def close(checkpoint: Checkpoint) -> None:
    """End the converter's process, if there is one."""
    if checkpoint.description is not None:
        checkpoint.description.rows.close()


def mended(checkpoint: Checkpoint) -> dict[str, str]:
    """The keys in which the converter contradicts the checkpoint, which other tests judge."""
    if checkpoint.description is None:
        return {}
    tokens, keys = checkpoint.description.tokens.mended, checkpoint.description.mended
    return {f"key {key}": "the checkpoint's own tokenizer has it otherwise" for key in tokens} | {
        f"key {key}": "config.json has it otherwise" for key in keys
    }


def compare_source(checkpoint: Checkpoint, gguf: Path, folder: Path) -> None:
    """Build the quant ``source``: llama-quantize's copy of the converter's own file.

    But for keys that are mended.
    """
    if checkpoint.description is None:
        return  # of a family of ours, which has none
    work = prepare(checkpoint, find_quants(["source"]))
    (artifact,) = build(work, folder, jobs=2, max_memory=2**30)
    copy = folder / "copy.gguf"
    native_tools.quantize(gguf, copy, "copy")
    same = artifact.path.read_bytes() == copy.read_bytes()
    found = [] if same else differences(artifact.path, copy)
    expected = set(mended(checkpoint))
    if "general.file_type" not in checkpoint.description.header.metadata:
        expected.add("key general.file_type")  # some converters forget it, and the tool guesses
    assert {line.partition(":")[0] for line in found} == expected, found


def stored_blocks(gguf: Path) -> bool:
    return any(tensor.dtype in _BLOCKS for tensor in open_gguf(gguf).tensors.values())


def compare_architecture(
    name: str, made: tuple[str, ...], tmp_path: Path, factory: pytest.TempPathFactory
) -> None:
    """The converter's own file, and two quants that go round: whole files, keys included."""
    folder = small_checkpoints(factory, made)[name]  # first, or they are made twice
    gguf = small_ggufs(factory, made)[name]
    checkpoint = describe(folder, name, lenient_tree(factory))
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
    left_out = {*NEED_IMATRIX, *ABORTS, *native_tools.VARIANTS, "bf16"}
    usual = [q for q in PLAIN_QUANTS if q not in left_out]
    first = 2 * FOREIGN.index(name)
    return [usual[(first + n) % len(usual)] for n in range(2)]


def compare_form(
    name: str, made: tuple[str, ...], tmp_path: Path, factory: pytest.TempPathFactory
) -> None:
    """Types are those of the converter's bf16. Bytes, too, unless it rounds what is computed."""
    is_rounded = STORED[name].quantization or STORED[name].older_quantization or name in ROUNDED
    bf16 = stored_ggufs(factory, made, "bf16")[name]
    checkpoint = describe(stored_checkpoints(factory, made)[name], name, lenient_tree(factory))
    try:
        ours, theirs = open_model(checkpoint), open_model(open_gguf(bf16))
        for quant in find_quants(["q4_k_m", "q2_k", "mxfp4_moe", "bf16"]):
            assert types(ours, quant) == types(theirs, quant), quant.name
        reference = bf16
        if is_rounded:
            reference = stored_ggufs(factory, made, "f32")[name]
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
