"""The converter's process alone is killed while a build goes on, at a message by chance."""

import random
from pathlib import Path

import pytest

from tests.building.builds import artifacts_in
from tests.building.ended_converter import count_messages, fp8_experts, kill_and_resume
from tests.cli.command import quantkit, refusal


def test_a_kill(tmp_path: Path) -> None:
    """`test_ended_converter_search` has twenty."""
    source = fp8_experts(tmp_path / "model")
    n_messages = count_messages(source, tmp_path / "whole")
    at = random.Random(1).randrange(n_messages // 2, n_messages)
    kill_and_resume(source, tmp_path / "killed", at, artifacts_in(tmp_path / "whole"))


def test_the_command_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is wrong with the checkpoint, so the status is not that of bad input."""
    source, out = fp8_experts(tmp_path / "model"), tmp_path / "out"
    monkeypatch.setattr("quantkit.checkpoint.converter.process.sys.executable", "/bin/false")
    said = refusal(quantkit("build", source, "-q", "q8_0", "-o", out), code=1)
    assert said.startswith("llama.cpp's converter ended without an answer (status 1); run the same")
    assert not out.exists()
