from pathlib import Path

import pytest
import torch

from quantkit.core.errors import CheckpointError
from quantkit.verify.conversion import LIMIT, against_transformers
from tests.build.builds import build
from tests.pickled import pickled
from tests.verify.faults import change_rope_base, with_fault

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


@pytest.mark.parametrize("name", ["tiny-mixtral", "tiny-mistral"])
def test_llama_cpp_computes_what_transformers_does(name: str) -> None:
    found = against_transformers(CHECKPOINTS / name, windows=1, threads=1)
    assert found.n_positions == 512
    assert found.n_vocab == 1024
    assert 0 < found.largest < LIMIT / 4


def test_weights_of_torch_save_are_loaded_by_both(tmp_path: Path) -> None:
    folder = pickled(CHECKPOINTS / "tiny-mistral", tmp_path / "tiny-mistral", 2)
    found = against_transformers(folder, windows=1, context=64, threads=1)
    assert 0 < found.largest < LIMIT / 4


def test_weights_of_torch_save_that_ask_for_more_never_reach_torch(tmp_path: Path) -> None:
    folder = pickled(CHECKPOINTS / "tiny-mistral", tmp_path / "tiny-mistral")
    torch.save({"w": torch.zeros(2), "x": Path("x")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="which no weights need, and was not run"):
        against_transformers(folder, gguf=tmp_path / "any.gguf", windows=1, context=64, threads=1)


def test_a_wrong_conversion_is_seen(tmp_path: Path) -> None:
    [healthy] = build(CHECKPOINTS / "tiny-mixtral", tmp_path, "f32")
    faulty = with_fault(healthy.path, tmp_path / "faulty.gguf", change_rope_base)
    found = against_transformers(
        CHECKPOINTS / "tiny-mixtral", gguf=faulty, windows=1, context=64, threads=1
    )
    assert found.largest > 100 * LIMIT
