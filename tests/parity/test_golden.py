"""Whole files of the tiny checkpoints are those of llama.cpp's own tools, by their sha256."""

import json
from pathlib import Path

import pytest

import quantkit
from tests.parity.golden import FILE, MODELS, made_by_the_tools, sha256_of

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


@pytest.mark.parametrize("name", MODELS)
def test_every_file_is_that_of_the_tools(name: str, tmp_path: Path) -> None:
    golden = json.loads(FILE.read_text())[name]
    assert len(golden) > 25
    options = quantkit.BuildOptions(checks=quantkit.CheckOptions(smoke=False))
    built = quantkit.build(CHECKPOINTS / name, tuple(golden), options, out=tmp_path)
    found = {a.layout.plan.quant.name: sha256_of(a.path) for a in built.artifacts}
    assert found == golden


@pytest.mark.native
def test_the_tools_still_make_these(tmp_path: Path) -> None:
    assert made_by_the_tools(tmp_path) == json.loads(FILE.read_text())
