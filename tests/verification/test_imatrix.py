"""Importance matrices of GGUFs, which llama.cpp runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantkit.calibration.calibrate import calibrate
from quantkit.calibration.settings import Settings
from quantkit.calibration.sources import TextSource
from quantkit.calibration.text import make_corpus
from quantkit.checkpoint.gathered import load_sums
from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.errors import CalibrationError, Interrupted
from quantkit.verification import imatrix
from quantkit.verification.imatrix import Gathered, GatherOptions, GatherStep, gather, is_made_from
from tests.calibration.runs import TINY, corpus_of, opened, text_file
from tests.gguf_sources import unquantized
from tests.verification.faults import scale_tensors, with_fault

CHUNKS, CONTEXT = 4, 128
NAMES = ("tiny-mixtral", "tiny-mistral")


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: unquantized(TINY / name, tmp_path_factory.mktemp(name), quant="f32") for name in NAMES
    }


def gathered(gguf: Path, folder: Path, report: object = None) -> Gathered:
    wish = GatherOptions([TextSource(text_file(folder))], CHUNKS, CONTEXT, threads=1)
    source = open_checkpoint(gguf)
    out = folder / "imatrix.gguf"
    return gather(source, wish, out, report) if callable(report) else gather(source, wish, out)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_that_of_the_checkpoint(name: str, ggufs: dict[str, Path], tmp_path: Path) -> None:
    """As PyTorch computes it, in another way."""
    found = gathered(ggufs[name], tmp_path)
    checkpoint, model = opened(TINY / name)
    corpus = corpus_of(checkpoint, tmp_path, CHUNKS, CONTEXT)
    settings = Settings(fewest_tokens=0)
    expected = calibrate(checkpoint, model, corpus, tmp_path / "theirs.gguf", settings)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-4)
    assert (found.chunks, found.resumed) == (CHUNKS, 0)
    assert [one.tokens for one in found.routing.values()] == [
        one.tokens for one in expected.routing.values()
    ]
    ours, theirs = (load_sums(one.path, CONTEXT) for one in (found, expected))
    assert ours.datasets == theirs.datasets
    assert (ours.chunk_count, ours.context) == (CHUNKS, CONTEXT)
    assert ours.entries.keys() == theirs.entries.keys()
    for tensor, sums in theirs.entries.items():
        assert (ours.entries[tensor].counts == sums.counts).all(), tensor
        np.testing.assert_allclose(ours.entries[tensor].squares, sums.squares, rtol=1e-3)
    assert load_imatrix(found.path).datasets == (str(tmp_path / "training.txt"),)


def test_conversations_and_shares_are_those_of_the_checkpoint(
    ggufs: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "Once more?"}, {"role": "assistant", "content": "Yes."}]
    file.write_text("".join(f"{json.dumps(turns)}\n" for _ in range(100)))
    sources = [TextSource(text_file(tmp_path), weight=1), TextSource(file, is_chat=True, weight=2)]
    checkpoint, model = opened(TINY / "tiny-mistral")
    corpus = make_corpus(checkpoint, sources, CHUNKS, CONTEXT)
    assert 2 in corpus.tokens  # an answer's end
    settings = Settings(fewest_tokens=0)
    expected = calibrate(checkpoint, model, corpus, tmp_path / "theirs.gguf", settings)
    wish = GatherOptions(sources, CHUNKS, CONTEXT, threads=1)
    found = gather(open_checkpoint(ggufs["tiny-mistral"]), wish, tmp_path / "imatrix.gguf")
    assert found.text == corpus.names
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-4)
    ours, theirs = (load_sums(one.path, CONTEXT) for one in (found, expected))
    for tensor, sums in theirs.entries.items():
        np.testing.assert_allclose(ours.entries[tensor].squares, sums.squares, rtol=1e-3)


def test_stopped_it_goes_on(ggufs: dict[str, Path], tmp_path: Path) -> None:
    """At a chunk whose predecessor was saved, and the result is the same to the last bit."""
    (tmp_path / "whole").mkdir()
    whole = gathered(ggufs["tiny-mixtral"], tmp_path / "whole")
    code = """
import os, signal, sys
from pathlib import Path
from quantkit.verification import imatrix
from tests.verification.test_imatrix import gathered
imatrix.SAVE_SECONDS = 0.0
def dying(step):
    if step.chunks == 2:
        os.killpg(0, signal.SIGKILL)
gathered(Path(sys.argv[1]), Path(sys.argv[2]), dying)
"""
    part = tmp_path / "whole"  # the text's name is in the file, so it is the same
    whole.path.rename(tmp_path / "expected.gguf")
    killed = subprocess.run(
        [sys.executable, "-c", code, ggufs["tiny-mixtral"], part],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
        start_new_session=True,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (part / "imatrix.gguf").exists()
    resumed = gathered(ggufs["tiny-mixtral"], part)
    assert resumed.resumed >= 2
    assert resumed.perplexity == whole.perplexity
    assert resumed.path.read_bytes() == (tmp_path / "expected.gguf").read_bytes()
    assert sorted(path.name for path in part.iterdir()) == ["imatrix.gguf", "training.txt"]


def test_ctrl_c(ggufs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(imatrix, "run_worker", stop)
    with pytest.raises(Interrupted, match="run the same command"):
        gathered(ggufs["tiny-mistral"], tmp_path)


def test_other_text_does_not_resume_what_was_begun(
    ggufs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imatrix, "SAVE_SECONDS", 0.0)
    steps: list[GatherStep] = []
    gathered(ggufs["tiny-mistral"], tmp_path, steps.append)
    assert [step.chunks for step in steps] == [*range(CHUNKS + 1)]
    partial = tmp_path / "imatrix.gguf.partial"
    partial.mkdir()
    (tmp_path / "imatrix.gguf").rename(partial / "unfinished.gguf")
    assert gathered(ggufs["tiny-mistral"], tmp_path).resumed == 0


def test_it_knows_what_it_was_made_from(ggufs: dict[str, Path], tmp_path: Path) -> None:
    found = gathered(ggufs["tiny-mistral"], tmp_path).path
    source = open_checkpoint(ggufs["tiny-mistral"])
    wish = GatherOptions([TextSource(tmp_path / "training.txt")], 4, 128)
    assert is_made_from(found, source, wish)
    assert not is_made_from(found, source, GatherOptions(wish.sources, 5, 128))
    assert not is_made_from(found, open_checkpoint(ggufs["tiny-mixtral"]), wish)
    (tmp_path / "training.txt").write_text("other text")
    assert not is_made_from(found, source, wish)


def test_too_little_text_leaves_nothing(ggufs: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("too short")
    wish = GatherOptions([TextSource(text)], CHUNKS, CONTEXT)
    with pytest.raises(CalibrationError, match=r"tokens are \d+, .*at least 256"):
        gather(open_checkpoint(ggufs["tiny-mistral"]), wish, tmp_path / "imatrix.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_activations_that_are_not_finite(ggufs: dict[str, Path], tmp_path: Path) -> None:

    def enlarge(file: Path) -> None:
        scale_tensors(file, "blk.1.ffn_up", 1e35)

    gguf = with_fault(ggufs["tiny-mistral"], tmp_path / "huge.gguf", enlarge)
    with pytest.raises(CalibrationError, match=r"NaN or infinite activations, which blk\.1\.ffn_d"):
        gathered(gguf, tmp_path)
