"""What determines a result is in its identity: a run over anything else resumes nothing."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from quantkit.calibration import progress
from quantkit.calibration import settings as module
from quantkit.calibration.calibrate import calibrate, is_made_from
from quantkit.calibration.densify import merged
from quantkit.calibration.gptq import build_gptq, plan_gptq
from quantkit.calibration.lockstep.perplexity import token_losses
from quantkit.calibration.settings import Settings, Step, identify
from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.core.errors import CheckpointError, Interrupted
from quantkit.formats.gptq.plan import GptqOptions
from quantkit.planning.quants import find_quants
from tests.calibration.runs import corpus_of, opened
from tests.random_checkpoints import random_checkpoint

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "intermediate_size": 256}


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "model", "mistral", **SMALL)


def stop_after_the_first_layer(patch: pytest.MonkeyPatch) -> None:
    real = progress.LayerJournal.record

    def record(self: progress.LayerJournal, layer: progress.Layer) -> None:
        real(self, layer)
        raise KeyboardInterrupt

    patch.setattr(progress.LayerJournal, "record", record)


@pytest.mark.parametrize(
    "changes",
    [{"rope_theta": 5e5}, {"rms_norm_eps": 1e-3}, {"something_new": 1}, {}],
    ids=lambda changes: next(iter(changes), "nothing"),
)
def test_an_interrupted_run_serves_the_same_config_alone(
    model: Path, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "imatrix.gguf"
    checkpoint, described = opened(model)
    corpus = corpus_of(checkpoint, tmp_path, 2, 64)
    with monkeypatch.context() as patch:
        stop_after_the_first_layer(patch)
        with pytest.raises(Interrupted):
            calibrate(checkpoint, described, corpus, out, Settings())
    edit_config(model, **changes, transformers_version="1.2.3", _name_or_path="elsewhere")
    said: list[str] = []
    now = opened(model)
    result = calibrate(*now, corpus, out, Settings(), say=said.append)
    assert result.resumed == (0 if changes else 1)
    if changes:
        [sentence] = said
        assert sentence.startswith(f"{out}.partial holds 1 layers of an interrupted run")
    else:
        assert said == []
    plain = tmp_path / "plain.gguf"
    calibrate(*now, corpus, plain, Settings())
    ours, theirs = load_imatrix(out).entries, load_imatrix(plain).entries
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_finished_matrix_of_another_config_text_or_algorithm_does_not_serve(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "imatrix.gguf"
    checkpoint, described = opened(model)
    corpus = corpus_of(checkpoint, tmp_path, 2, 64)
    calibrate(checkpoint, described, corpus, out, Settings())
    assert is_made_from(out, checkpoint, corpus, Settings())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    same_tokens = corpus_of(checkpoint, elsewhere, 2, 64)
    assert (same_tokens.tokens == corpus.tokens).all()
    assert not is_made_from(out, checkpoint, same_tokens, Settings())  # the file names its text
    with monkeypatch.context() as patch:
        patch.setattr(module, "_ALGORITHM", -1)
        assert not is_made_from(out, checkpoint, corpus, Settings())
    edit_config(model, rope_theta=5e5)
    assert not is_made_from(out, opened(model)[0], corpus, Settings())


def test_a_dense_merge_of_another_config_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_checkpoint(tmp_path / "mixtral", "mixtral", num_local_experts=2, **SMALL)
    checkpoint, described = opened(folder)
    corpus = corpus_of(checkpoint, tmp_path, 2, 64)
    begun = tmp_path / "merge.partial"
    with monkeypatch.context() as patch:
        stop_after_the_first_layer(patch)
        with (
            pytest.raises(Interrupted),
            merged(checkpoint, described, corpus, Settings(), begun, rounds=0),
        ):
            pass
    edit_config(folder, rope_theta=5e5)
    said: list[str] = []
    now = opened(folder)
    with merged(*now, corpus, Settings(), begun, rounds=0, say=said.append) as made:
        assert len(said) == 1
        identity = made.identity
    with merged(checkpoint, described, corpus, Settings(), begun, rounds=0) as made:
        assert made.identity != identity


def test_a_gptq_artifact_of_another_config_is_another(model: Path, tmp_path: Path) -> None:
    checkpoint, _ = opened(model)
    corpus = corpus_of(checkpoint, tmp_path, 2, 64)
    before = identify(checkpoint, corpus, Settings())
    edit_config(model, rope_theta=5e5)
    after = identify(opened(model)[0], corpus, Settings())
    assert {key for key in before if before[key] != after[key]} == {"config"}


@pytest.mark.parametrize("work", ["calibrate", "gptq", "merge", "perplexity"])
def test_weights_that_change_during_a_run_are_noticed(work: str, tmp_path: Path) -> None:
    """After they have been read for the last time, so that nothing else can tell."""
    shape = {**SMALL, "num_local_experts": 2} if work == "merge" else SMALL
    family = "mixtral" if work == "merge" else "mistral"
    folder = random_checkpoint(tmp_path / "model", family, **shape)
    checkpoint, described = opened(folder)
    corpus = corpus_of(checkpoint, tmp_path, 2, 64)
    weights = folder / "model.safetensors"
    assert weights.is_file()

    def touch(*_: object) -> None:
        os.utime(weights, ns=(1, 1))

    def report(step: Step) -> None:
        if step.layers > 1:
            touch()

    out = tmp_path / "out"

    def run() -> None:
        match work:
            case "calibrate":
                calibrate(checkpoint, described, corpus, out, Settings(), report)
            case "gptq":
                wish = (find_quants(["gptq-int4"])[0], GptqOptions(64), Settings())
                plan = plan_gptq(checkpoint, described, corpus, *wish, base_name="Tiny")
                build_gptq(plan, out, report=report)
            case "merge":
                with merged(
                    checkpoint, described, corpus, Settings(), out, rounds=0, report=report
                ):
                    pass
            case _:
                token_losses(checkpoint, corpus, Settings(), touch)

    with pytest.raises(CheckpointError, match="changed while they were read; run the same"):
        run()
    assert not out.is_file()
    assert not (out / "Tiny-gptq-int4").exists()
    assert not (out / "quantkit.json").exists()
