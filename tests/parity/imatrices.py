"""Importance matrices of GGUFs, ours and llama-imatrix's, by the same libraries."""

from pathlib import Path

import numpy as np
import pytest

from quantkit.calibration.sources import TextSource
from quantkit.checkpoint.gathered import load_sums
from quantkit.checkpoint.open import open_checkpoint
from quantkit.encodings.ggml import library_path
from quantkit.verification.imatrix import GatherOptions, gather
from tests import native_tools
from tests.architectures.ggufs import small_ggufs
from tests.architectures.small import SMALL
from tests.calibration.runs import text_file

# Powers of two: else llama-imatrix's batches end in rows that it leaves out, being fewer than 16.
CHUNKS, CONTEXT = 4, 128
# What llama-imatrix does not run, and why; the first three do not run in llama.cpp at all.
ALONE = {
    "llama4": "llama.cpp aborts: an input of its has no buffer",
    "glm-dsa": "llama.cpp aborts: it multiplies what does not fit",
    "gemma-embedding": "llama.cpp aborts: an input of its has no buffer",
    "t5": "it has an encoder and a decoder",
    "t5encoder": "its tokenizer ends a text",
    "modern-bert": "its tokenizer ends a text",
    "glm5-next": "it ends without a word",
}
# Models that look at a token several times, which llama-imatrix counts as so many chunks.
SEVERAL_TIMES = {"gemma3n", "hrm_text"}
COMPARED = tuple(name for name in SMALL if name not in ALONE)
# Of each kind that is watched in a way of its own.
KINDS = tuple(
    name
    for name in ("mixtral", "gemma3n", "deepseek2", "qwen3next", "rwkv7", "jamba", "bert", "phi2")
    if name in COMPARED
)


def compare_matrices(name: str, tmp_path: Path, factory: pytest.TempPathFactory) -> None:
    gguf, text = small_ggufs(factory)[name], text_file(tmp_path)
    wish = GatherOptions([TextSource(text)], CHUNKS, CONTEXT, threads=1)
    made = gather(open_checkpoint(gguf), wish, tmp_path / "ours.gguf").path
    native_tools.imatrix(
        gguf,
        text,
        tmp_path / "theirs.gguf",
        fmt="gguf",
        chunks=CHUNKS,
        context=CONTEXT,
        threads=1,
        exact_cache=True,
        libraries=library_path().parent,
    )
    ours, theirs = (load_sums(file, CONTEXT) for file in (made, tmp_path / "theirs.gguf"))
    assert ours.datasets == theirs.datasets
    assert ours.chunk_count == CHUNKS
    assert name in SEVERAL_TIMES or theirs.chunk_count == CHUNKS
    assert ours.entries.keys() == theirs.entries.keys()
    for tensor, sums in theirs.entries.items():
        found = ours.entries[tensor]
        assert (found.counts == sums.counts).all(), tensor
        assert found.squares.shape == sums.squares.shape, tensor
        np.testing.assert_allclose(found.squares, sums.squares, rtol=1e-4, err_msg=tensor)
