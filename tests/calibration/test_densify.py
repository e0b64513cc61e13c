"""Merges by what experts do on a text: better than their mean, and the same when resumed."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantkit.calibration.densify import Merged, merged
from quantkit.calibration.least_squares import ExpertPart, Samples, fit
from quantkit.calibration.lockstep.perplexity import token_losses
from quantkit.calibration.settings import Settings, Step
from quantkit.calibration.sources import TextSource
from quantkit.calibration.text import Corpus, make_corpus
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.densified import densified
from quantkit.checkpoint.open import open_checkpoint
from quantkit.checkpoint.rows import open_rows
from quantkit.families import find_family
from quantkit.families.model import Decoder
from tests.checkpoints.text import heldout_text, training_text
from tests.cli.command import quantkit, refusal

MIXTRAL = Path(__file__).parents[1] / "checkpoints" / "tiny-mixtral"
CPU = torch.device("cpu")


def mixtral() -> tuple[Checkpoint, Decoder]:
    checkpoint = open_checkpoint(MIXTRAL)
    return checkpoint, find_family(checkpoint.config).describe(checkpoint.config, ())


def corpus_of(folder: Path, text: str, chunks: int, context: int = 512) -> Corpus:
    file = folder / "text"
    file.write_text(text)
    return make_corpus(mixtral()[0], (TextSource(file),), chunks, context)


def test_routed_beats_linear_and_fit_closes_half_of_the_gap(tmp_path: Path) -> None:
    checkpoint, model = mixtral()
    held_out = corpus_of(tmp_path, heldout_text(), 4)
    seen = corpus_of(tmp_path, training_text(), 6)

    def score(checkpoint: Checkpoint) -> float:
        """Log perplexity on held-out text."""
        return float(token_losses(checkpoint, held_out, Settings())[0].mean())

    moe = score(checkpoint)
    linear = score(densified(checkpoint, model, [[1.0] * 8] * 4)[0])
    with merge(seen, tmp_path / "routed", None) as made:
        routed = score(made.checkpoint)
    with merge(seen, tmp_path / "fit", 1) as made:
        fitted = score(made.checkpoint)
    assert moe < fitted < routed < linear
    assert routed < linear - 0.5
    # Half is promised; 6 chunks and one round close some 90 % of it.
    assert (linear - fitted) / (linear - moe) > 0.85
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def merge(corpus: Corpus, folder: Path, rounds: int | None, **options: Any) -> Any:
    return merged(*mixtral(), corpus, Settings(), folder, rounds=rounds, **options)


def test_a_resumed_fit_gives_the_same_bytes(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, training_text(), 2, 64)

    def whole(made: Merged) -> dict[str, bytes]:
        read = open_rows(made.checkpoint)
        return {
            name: read(name, 0, t.n_bytes // t.row_bytes).tobytes()
            for name, t in made.checkpoint.tensors.items()
        }

    with merge(corpus, tmp_path / "once", 1) as made:
        expected = whole(made)
    folder = tmp_path / "twice"
    with pytest.raises(KeyError), merge(corpus, folder, 1, report=failing_after(2)):
        pass
    assert folder.is_dir()
    reported: list[float] = []
    report: Callable[[Step], None] = lambda step: reported.append(step.layers)  # noqa: E731 - short
    with merge(corpus, folder, 1, report=report) as made:
        assert reported[0] == 2
        assert whole(made) == expected
    spilling = Settings(max_memory=1)
    with merged(*mixtral(), corpus, spilling, tmp_path / "spilled", rounds=1) as made:
        assert whole(made) == expected


def failing_after(layers: int) -> Callable[[Step], None]:
    def report(step: Step) -> None:
        if step.layers > layers:
            raise KeyError("stop")

    return report


def test_down_is_ridge_regression_and_rounds_only_help() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, start = (
        ExpertPart(
            *(
                torch.randn(shape, generator=generator) / 4
                for shape in ((24, 16),) * 2 + ((16, 24),)
            )
        )
        for _ in range(2)
    )
    x = torch.randn(5000, 16, generator=generator)
    samples = Samples(x, teacher(x), CPU)
    solved = fit(samples, start, 0)
    inner = start.inner(x).double()
    moment = inner.T @ inner
    moment += 1e-3 * moment.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    expected = torch.linalg.solve(moment, inner.T @ teacher(x).double()).T
    np.testing.assert_allclose(solved.down.double(), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(solved.gate, start.gate)
    errors = [samples.error(fit(samples, start, rounds)) for rounds in (0, 1, 3)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] < samples.error(start)


def test_the_command(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(training_text()[:20_000])
    out = tmp_path / "dense"
    options = ["--merge", "fit", "--text", text, "--chunks", 4, "--context", 128, "--rounds", 0]
    outcome = quantkit("densify", MIXTRAL, "-o", out, *options)
    assert outcome.code in (None, 0), outcome
    assert json.loads((out / "config.json").read_text())["model_type"] == "mistral"
    assert "fitted by least squares" in (out / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "text"]
    outcome = quantkit("perplexity", out, "--text", text, "--chunks", 4, "--json")
    assert math.isfinite(json.loads(outcome.out)["models"][0]["perplexity"])
    wrong = quantkit("densify", MIXTRAL, "-o", tmp_path / "x", "--expert", 1, "--text", text)
    assert "--text goes with" in refusal(wrong)
