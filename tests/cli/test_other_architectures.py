"""Commands that run a checkpoint of an architecture that quantkit does not describe by itself."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from quantkit.calibration import calibrate as imatrix
from quantkit.calibration.settings import Settings, Step
from quantkit.calibration.sources import TextSource
from quantkit.calibration.text import Corpus, make_corpus
from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.checkpoint.open import open_checkpoint, open_model, open_stored
from quantkit.core.errors import Interrupted
from quantkit.families.model import Model
from tests.calibration.small_models import ordinary_logits, small_model
from tests.checkpoints.text import heldout_text
from tests.cli.command import quantkit, refusal

pytestmark = pytest.mark.usefixtures("shared_converter")

CHUNKS, CONTEXT = 2, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model("olmoe", tmp_path_factory.mktemp("model") / "Model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(heldout_text()[:6000])
    return file


def corpus_of(folder: Path, text: Path) -> Corpus:
    return make_corpus(open_stored(folder), (TextSource(text),), CHUNKS, CONTEXT)


def in_transformers(folder: Path, corpus: Corpus) -> float:
    logits = torch.stack(ordinary_logits(folder, corpus.tokens))
    scores = torch.log_softmax(logits[:, CONTEXT // 2 : -1], -1)
    wanted = torch.from_numpy(corpus.tokens)[:, CONTEXT // 2 + 1 :, None]
    return math.exp(-float(scores.gather(-1, wanted).double().mean()))


def test_perplexity_is_transformers(folder: Path, text: Path) -> None:
    outcome = quantkit(
        "perplexity", folder, "-t", text, "--chunks", CHUNKS, "--context", CONTEXT, "--json"
    )
    assert outcome.code in (None, 0), outcome.err
    (row,) = json.loads(outcome.out)["models"]
    wanted = in_transformers(folder, corpus_of(folder, text))
    assert row["perplexity"] == pytest.approx(wanted, rel=1e-6)
    assert row["run"] == "streamed"


def test_an_importance_matrix_that_was_stopped_is_the_same(
    folder: Path, text: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.gguf"
    outcome = quantkit(
        *("calibrate", folder, "-o", whole, "-t", text),
        *("--chunks", CHUNKS, "--context", CONTEXT, "--json"),
    )
    assert outcome.code in (None, 0), outcome.err
    found = json.loads(outcome.out)
    corpus = corpus_of(folder, text)
    assert found["perplexity"] == pytest.approx(in_transformers(folder, corpus), rel=1e-6)
    assert [sum(layer["tokens"]) for layer in found["routing"]] == [2 * CHUNKS * CONTEXT] * 2
    checkpoint = open_checkpoint(folder)
    model = open_model(checkpoint)
    assert_complete(whole, model)
    again = tmp_path / "again.gguf"

    def stop(step: Step) -> None:
        if step.layers == 1:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="1 of 2 layers"):
        imatrix.calibrate(checkpoint, model, corpus, again, Settings(), stop)
    assert not again.exists()
    result = imatrix.calibrate(checkpoint, model, corpus, again, Settings(max_memory=0))
    assert result.resumed == 1
    assert again.read_bytes() == whole.read_bytes()
    assert result.perplexity == found["perplexity"]
    assert not again.with_name("again.gguf.partial").exists()


def test_a_build_makes_its_matrix_on_the_way(folder: Path, text: Path, tmp_path: Path) -> None:
    wish: list[object] = ["-q", "iq3_xxs", "--imatrix", "auto", "-t", text, "--no-smoke"]
    wish += ["-o", tmp_path / "out", "--chunks", CHUNKS, "--context", CONTEXT]
    outcome = quantkit("build", folder, *wish)
    assert outcome.code in (None, 0), outcome.err
    made = tmp_path / "out" / "imatrix.gguf"
    checkpoint, expected = open_checkpoint(folder), tmp_path / "expected.gguf"
    imatrix.calibrate(
        checkpoint, open_model(checkpoint), corpus_of(folder, text), expected, Settings()
    )
    ours, theirs = (load_imatrix(file).entries for file in (made, expected))
    assert ours.keys() == theirs.keys()
    for name, importance in theirs.items():
        np.testing.assert_allclose(ours[name], importance, rtol=1e-6)
    (entry,) = json.loads((tmp_path / "out" / "quantkit.json").read_text())["artifacts"].values()
    assert entry["imatrix"]["file"] == "imatrix.gguf"
    outcome = quantkit("build", folder, *wish)
    assert "was there already" in outcome.err
    other = tmp_path / "other.txt"
    other.write_text(heldout_text()[6000:12000])
    sentence = refusal(quantkit("build", folder, *wish, "-t", other))
    assert "imatrix.gguf already exists and was made from another model, text" in sentence


def assert_complete(file: Path, model: Model) -> None:
    """Each matrix of the GGUF has an entry, with numbers."""
    entries = load_imatrix(file).entries
    wanted = {t.name: t for t in model.targets if t.is_linear}
    assert wanted.keys() <= entries.keys()
    for name, target in wanted.items():
        experts = target.shape[0] if len(target.shape) > 2 else 1
        assert entries[name].size == experts * target.columns
        assert np.isfinite(entries[name]).all()


def test_more_tokens_than_the_model_takes_are_refused(folder: Path, text: Path) -> None:
    sentence = refusal(quantkit("perplexity", folder, "-t", text, "--chunks", 2, "--context", 513))
    assert "--context 513 is more than the 512 tokens" in sentence


def test_a_model_that_transformers_does_not_know(folder: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    config |= {"model_type": "never_heard_of", "architectures": ["NeverHeardOfForCausalLM"]}
    (other / "config.json").write_text(json.dumps(config))
    assert "no model of the type" in refusal(
        quantkit("perplexity", other, "-t", text, "--context", CONTEXT)
    )


def test_what_another_mixture_does_not_do(folder: Path, tmp_path: Path) -> None:
    wish = ("calibrate", folder, "-o", tmp_path / "i.gguf", "--min-tokens", 8)
    assert "experts of other architectures borrow no tokens" in refusal(quantkit(*wish))
