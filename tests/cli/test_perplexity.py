"""``quantkit perplexity``: transformers' own figures, and llama.cpp's."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.calibration.lockstep.perplexity import token_losses
from quantkit.calibration.settings import Settings
from quantkit.calibration.sources import TextSource
from quantkit.calibration.text import Corpus, make_corpus
from quantkit.checkpoint.open import open_checkpoint
from tests.checkpoints.text import heldout_text
from tests.cli.command import quantkit, refusal
from tests.pickled import pickled
from tests.raw_releases import raw_release

MIXTRAL = Path(__file__).parents[1] / "checkpoints" / "tiny-mixtral"
CHUNKS = 2


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "held-out.txt"
    file.write_text(heldout_text())
    return file


def corpus_of(text: Path) -> Corpus:
    return make_corpus(open_checkpoint(MIXTRAL), (TextSource(text),), CHUNKS, 512)


def in_transformers(folder: Path, corpus: Corpus) -> float:
    """Perplexity over the second halves, with transformers' own model."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.from_numpy(corpus.tokens)
    with torch.inference_mode():
        scores = torch.log_softmax(model(tokens).logits[:, 256:-1], -1)
    picked = scores.gather(-1, tokens[:, 257:, None])
    return math.exp(-float(picked.double().mean()))


def test_the_table_of_experts_is_transformers(tmp_path: Path, text: Path) -> None:
    arguments = [MIXTRAL, "--experts", "--text", text, "--chunks", CHUNKS]
    outcome = quantkit("perplexity", *arguments, "--json")
    assert outcome.code in (None, 0), outcome
    rows = json.loads(outcome.out)["models"]
    names = ["tiny-mixtral", *(f"expert {e}" for e in range(8)), "8x linear merge"]
    assert [row["name"] for row in rows] == names
    corpus = corpus_of(text)
    assert rows[0]["perplexity"] == pytest.approx(in_transformers(MIXTRAL, corpus), rel=1e-3)
    choices: list[list[object]] = [*(["--expert", e] for e in range(8)), ["--merge", "linear"]]
    for row, options in zip(rows[1:], choices, strict=True):
        dense = tmp_path / row["name"]
        assert quantkit("densify", MIXTRAL, "-o", dense, *options).code in (None, 0)
        assert row["perplexity"] == pytest.approx(in_transformers(dense, corpus), rel=1e-3)


def test_checkpoint_pickled_and_raw_weights_and_gguf_agree(tmp_path: Path, text: Path) -> None:
    bins = pickled(MIXTRAL, tmp_path / "bins", 2)
    raw = raw_release(MIXTRAL, tmp_path / "raw", "pth-stacked")
    assert quantkit("build", raw, "-q", "f32", "-o", tmp_path / "out", "--no-smoke").code in (
        None,
        0,
    )
    models = [MIXTRAL, bins, raw, *(tmp_path / "out").glob("*.gguf")]
    outcome = quantkit("perplexity", *models, "--text", text, "--chunks", CHUNKS, "--json")
    rows = json.loads(outcome.out)["models"]
    assert [row["run"] for row in rows] == ["streamed", "streamed", "streamed", "llama.cpp"]
    assert rows[0]["perplexity"] == rows[1]["perplexity"] == rows[2]["perplexity"]
    assert rows[3]["perplexity"] == pytest.approx(rows[0]["perplexity"], rel=1e-3)
    assert rows[3]["perplexity_pm"] == pytest.approx(rows[0]["perplexity_pm"], rel=1e-2)
    table = quantkit("perplexity", models[-1], "--text", text, "--chunks", 2)
    assert table.code in (None, 0)
    assert "llama.cpp" in table.out


def test_activations_on_disk_change_nothing(text: Path) -> None:
    checkpoint = open_checkpoint(MIXTRAL)
    corpus = corpus_of(text)
    kept, _ = token_losses(checkpoint, corpus, Settings())
    spilled, _ = token_losses(checkpoint, corpus, Settings(max_memory=1))
    assert kept.tobytes() == spilled.tobytes()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere"], "does not exist"),
        ([MIXTRAL, "--text", "nowhere.txt"], "does not exist"),
        ([MIXTRAL.with_name("tiny-mistral"), "--experts"], "dense already"),
        (["nowhere.gguf"], "nowhere.gguf"),
    ],
)
def test_bad_input(arguments: list[object], reason: str) -> None:
    assert reason in refusal(quantkit("perplexity", *arguments))
