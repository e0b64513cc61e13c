"""Importance matrices of other architectures against llama-imatrix's, of the same text."""

from pathlib import Path

import numpy as np
import pytest

from quantkit.building.engine import build
from quantkit.building.work import prepare
from quantkit.calibration.calibrate import calibrate
from quantkit.calibration.settings import Settings
from quantkit.calibration.sources import TextSource
from quantkit.calibration.text import make_corpus
from quantkit.checkpoint.open import open_checkpoint, open_model
from quantkit.planning.quants import find_quants
from tests import native_tools
from tests.calibration.runs import text_file
from tests.calibration.small_models import small_model
from tests.calibration.test_calibrate import read_imatrix

pytestmark = pytest.mark.native

CHUNKS, CONTEXT = 4, 128
# What llama.cpp multiplies otherwise than the model: latent attention's halves of one matrix, of
# which one is turned around.
ABSORBED = ("attn_k_b", "attn_v_b")
# One dense, one mixture, one with latent attention; the others are compared by hand.
NAMES = ("qwen3", "olmoe", "deepseek2")
# llama.cpp does not read it, but knows what the published ones have: the length of a head.
PUBLISHED = {"gemma2": {"query_pre_attn_scalar": 64}}


@pytest.mark.parametrize("name", NAMES)
def test_counts_and_sums_are_llama_imatrixs(name: str, tmp_path: Path) -> None:
    compare_matrices(name, tmp_path)


def compare_matrices(name: str, tmp_path: Path) -> None:
    folder = small_model(name, tmp_path / "model", **PUBLISHED.get(name, {}))
    text = text_file(tmp_path)
    checkpoint = open_checkpoint(folder)
    corpus = make_corpus(checkpoint, [TextSource(text)], CHUNKS, CONTEXT)
    ours = calibrate(
        checkpoint, open_model(checkpoint), corpus, tmp_path / "ours.gguf", Settings()
    ).path
    work = prepare(folder, find_quants(["f32"]))
    (gguf,) = build(work, tmp_path / "out", jobs=1, max_memory=2**30)
    theirs = tmp_path / "theirs.gguf"
    native_tools.imatrix(
        gguf.path,
        text,
        theirs,
        fmt="gguf",
        chunks=CHUNKS,
        context=CONTEXT,
        threads=1,
        exact_cache=True,
    )
    mine, reference = read_imatrix(ours), read_imatrix(theirs)
    lacking = reference.keys() - mine.keys()
    assert {key for key in reference if any(part in key for part in ABSORBED)} == lacking
    assert mine.keys() <= reference.keys()
    for key in mine.keys() & reference.keys():
        wanted = reference[key]
        assert mine[key].shape == wanted.shape
        if key.endswith(".counts"):
            assert (mine[key] == wanted).all(), (key, mine[key], wanted)
        else:
            error = np.abs(mine[key] / wanted - 1)
            assert error.max() < 0.01, (key, error.max())
            assert error.mean() < 0.001, (key, error.mean())
