"""The importance matrix against llama-imatrix's, and what is built with it."""

from pathlib import Path

import numpy as np
import pytest

from quantkit.building.engine import build
from quantkit.building.work import prepare
from quantkit.calibration.calibrate import calibrate
from quantkit.calibration.settings import Settings
from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.planning.quants import find_quants
from quantkit.planning.recipe import EncodingOptions
from tests import native_tools
from tests.calibration.runs import TINY, corpus_of, opened
from tests.calibration.test_calibrate import read_imatrix
from tests.parity.both_ways import Source, convert
from tests.parity.cases import trained

pytestmark = pytest.mark.native

CHUNKS, CONTEXT = 8, 256
NAMES = ("tiny-mixtral", "tiny-mistral")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = tmp_path_factory.mktemp("calibrated")
    return convert(folder, {name: trained(name) for name in NAMES})


@pytest.mark.parametrize("exact_cache", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_counts_and_sums_are_llama_imatrixs(name: str, exact_cache: bool, tmp_path: Path) -> None:
    """As it is run by default, and with its keys and values in float32."""
    checkpoint, model = opened(TINY / name)
    corpus = corpus_of(checkpoint, tmp_path, CHUNKS, CONTEXT)
    # llama-imatrix lends no tokens.
    ours = calibrate(
        checkpoint, model, corpus, tmp_path / "ours.gguf", Settings(fewest_tokens=0)
    ).path
    theirs = tmp_path / "theirs.gguf"
    native_tools.imatrix(
        build(prepare(TINY / name, find_quants(["f32"])), tmp_path, jobs=1, max_memory=2**30)[
            0
        ].path,
        tmp_path / "training.txt",
        theirs,
        fmt="gguf",
        chunks=CHUNKS,
        context=CONTEXT,
        threads=1,
        exact_cache=exact_cache,
    )
    mine, reference = read_imatrix(ours), read_imatrix(theirs)
    assert mine.keys() == reference.keys()
    for key, wanted in reference.items():
        assert mine[key].shape == wanted.shape
        if key.endswith(".counts"):
            assert (mine[key] == wanted).all(), (key, mine[key], wanted)
        else:
            error = np.abs(mine[key] / wanted - 1)
            assert error.max() < (1e-4 if exact_cache else 0.01), (key, error.max())
            assert error.mean() < (1e-5 if exact_cache else 0.001), (key, error.mean())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_built_with_it_is_llama_quantizes(
    sources: dict[str, Source], name: str, tmp_path: Path
) -> None:
    checkpoint, model = opened(TINY / name)
    corpus = corpus_of(checkpoint, tmp_path, 4, 128)
    imatrix = calibrate(checkpoint, model, corpus, tmp_path / "i.gguf", Settings()).path
    options, matrix = EncodingOptions("ggml"), load_imatrix(imatrix)
    for quant in ("q4_k_m", "iq2_xs", "iq3_xxs", "q4_0"):
        source = sources[name].checkpoint
        work = prepare(source, find_quants([quant]), encoding=options, imatrix=matrix)
        (built,) = build(work, tmp_path / quant, jobs=1, max_memory=2**30)
        theirs = tmp_path / f"{quant}.gguf"
        native_tools.quantize(sources[name].converted, theirs, quant, imatrix=imatrix, threads=1)
        assert built.path.read_bytes() == theirs.read_bytes(), quant
