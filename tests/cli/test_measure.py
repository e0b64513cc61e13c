"""``quantkit measure``, and recipes of what it found."""

import json
from pathlib import Path

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
    assert "is there already; --overwrite replaces it" in said


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path: Path) -> None:
    assert "is a folder" in refusal(quantkit("measure", MISTRAL, "-o", tmp_path))
    missing = refusal(quantkit("measure", tmp_path / "none", "-o", tmp_path / "losses.json"))
    assert str(tmp_path / "none") in missing
