"""``quantkit measure``, and recipes of what it found."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.families.model import Model, Target
from quantkit.recipes import errors
from tests.building.builds import build
from tests.cli.command import quantkit, refusal
from tests.parity.cases import TRAINED

MISTRAL = TRAINED / "tiny-mistral"


def test_what_was_measured_serves_the_search(tmp_path: Path) -> None:
    losses = tmp_path / "losses.json"
    sizes = ("--chunks", "2", "--context", "64", "--rows", "8")
    done = quantkit("measure", MISTRAL, "-o", losses, *sizes)
    assert done.code in (0, None), done
    assert "30 tensors, squared gradients over 2 chunks of 64 tokens" in done.out
    assert f"quantkit build {MISTRAL} --measured {losses} --budget SIZE" in done.out

    wish = ("recipe", MISTRAL, "--bpw", "4", "--json")
    found = json.loads(quantkit(*wish, "--measured", losses).out)
    assumed = json.loads(quantkit(*wish).out)
    assert found["basis"].startswith("squared gradients over 2 chunks")
    assert found["types"] != assumed["types"]

    said = refusal(quantkit("measure", MISTRAL, "-o", losses, *sizes))
    assert "already exists; --overwrite replaces it" in said


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path: Path) -> None:
    assert "is a folder" in refusal(quantkit("measure", MISTRAL, "-o", tmp_path))
    missing = refusal(quantkit("measure", tmp_path / "none", "-o", tmp_path / "losses.json"))
    assert str(tmp_path / "none") in missing


def test_a_killed_measurement_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[str] = []
    rounded: list[str] = []
    real = errors._errors_of

    def go(_checkpoint: object, model: Model, *_: object) -> dict[str, float]:
        ways.append("there and back")
        return {target.name: 1.0 for target in model.targets if len(target.shape) > 1}

    def some(unit: Any, target: Target, *others: Any) -> list[float]:
        rounded.append(target.name)
        if len(set(rounded)) == stop_at:
            raise KeyboardInterrupt
        return real(unit, target, *others)

    monkeypatch.setattr("quantkit.recipes.sensitivity.measure_sensitivities", go)
    monkeypatch.setattr(errors, "_errors_of", some)
    sizes = ("--chunks", "2", "--context", "32", "--rows", "2", "--jobs", "1")
    whole, losses = tmp_path / "whole.json", tmp_path / "losses.json"

    stop_at = 12
    assert quantkit("measure", MISTRAL, "-o", losses, *sizes).code == 130
    assert not losses.exists()

    stop_at = 0
    rounded.clear()
    done = quantkit("measure", MISTRAL, "-o", losses, *sizes)
    assert "An earlier run has measured all sensitivities and the errors of" in done.err
    assert 0 < len(set(rounded)) < 30
    assert len(ways) == 1

    assert quantkit("measure", MISTRAL, "-o", whole, *sizes).code in (0, None)
    assert losses.read_bytes() == whole.read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"whole.json", "losses.json"}


def test_nothing_but_losses_is_replaced(tmp_path: Path) -> None:
    other = tmp_path / "notes.json"
    other.write_text('{"version": 1}')
    said = refusal(quantkit("measure", MISTRAL, "-o", other, "--overwrite"))
    assert "not a file of losses, so nothing replaces it" in said
    assert other.read_text() == '{"version": 1}'


def test_a_gguf_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (small,) = build(MISTRAL, tmp_path, "bf16")
    said = refusal(quantkit("measure", small.path, "-o", tmp_path / "losses.json"))
    assert said.startswith(f"{small.path} is a GGUF, and this needs a checkpoint;")
