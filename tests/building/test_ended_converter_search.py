"""Twenty kills of the converter's process: minutes, by hand (-m search)."""

import random
from pathlib import Path

import pytest

from tests.building.builds import artifacts_in
from tests.building.ended_converter import count_messages, fp8_experts, kill_and_resume

pytestmark = pytest.mark.search

KILLS = 20


def test_twenty_kills_at_random_messages(tmp_path: Path) -> None:
    source = fp8_experts(tmp_path / "model")
    n_messages = count_messages(source, tmp_path / "whole")
    whole = artifacts_in(tmp_path / "whole")
    for at in random.Random(20).sample(range(n_messages), KILLS):
        kill_and_resume(source, tmp_path / f"killed-{at}", at, whole)
