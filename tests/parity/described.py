"""Checkpoints as llama.cpp's converter describes them, for comparing what is built of them."""

from pathlib import Path

from quantkit.build.engine import build
from quantkit.build.work import prepare
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.converter.describe import Wish
from quantkit.checkpoint.gguf_source import open_gguf
from quantkit.checkpoint.open import open_checkpoint
from quantkit.plan.quants import find_quants
from tests import native_tools
from tests.architectures.ggufs import options_of
from tests.parity.compare import differences

# Elements of a slab: some rows of a matrix, so that what is computed is computed in parts.
SLAB = 5000
_BLOCKS = {"MXFP4", "NVFP4"}


def describe(checkpoint: Path, name: str, tree: Path) -> Checkpoint:
    mtp = False if "--no-mtp" in options_of(name) else None
    return open_checkpoint(checkpoint, Wish(tree, mtp=mtp))


def close(checkpoint: Checkpoint) -> None:
    """End the converter's process, if there is one."""
    if checkpoint.description is not None:
        checkpoint.description.rows.close()


def mended(checkpoint: Checkpoint) -> dict[str, str]:
    """The keys in which the converter contradicts the tokenizer, which tests of tokens judge."""
    keys = checkpoint.description.tokens.mended if checkpoint.description else ()
    return {f"key {key}": "the checkpoint's own tokenizer has it otherwise" for key in keys}


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
