"""Code that comes with a checkpoint leaves a trace where the converter runs it."""

from pathlib import Path

import pytest

from tests.architectures.coded import CODED, RAN, baited
from tests.architectures.ggufs import convert, stored_checkpoints

pytestmark = pytest.mark.search  # of the tests' own material, by hand

# What the converter runs of each; of the first it asks somebody, and there is nobody.
RUNS = {
    "qwen3-coded": None,
    "nemotron_h-coded": "tokenization_coded",
    "minimax-m2-coded": None,
    "qwen-coded": "tokenization_qwen",
}


def test_every_checkpoint_with_code_is_here() -> None:
    assert RUNS.keys() == CODED.keys()


@pytest.mark.parametrize("name", CODED)
def test_trace_of_what_the_converter_runs(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint = baited(stored_checkpoints(tmp_path_factory)[name], tmp_path / name)
    gguf = tmp_path / f"{name}.gguf"

    if CODED[name].refused is None:
        convert({name: checkpoint}, {name: gguf})
        assert gguf.exists()
    else:
        with pytest.raises(AssertionError, match=CODED[name].refused):
            convert({name: checkpoint}, {name: gguf})

    ran = checkpoint / RAN
    assert (ran.read_text().split()[-1] if ran.exists() else None) == RUNS[name]
