from pathlib import Path

import pytest

from quantkit.verify.conversion import LIMIT, against_transformers
from tests.build.builds import build
from tests.verify.faults import change_rope_base, with_fault

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


@pytest.mark.parametrize("name", ["tiny-mixtral", "tiny-mistral"])
def test_llama_cpp_computes_what_transformers_does(name: str) -> None:
    found = against_transformers(CHECKPOINTS / name, windows=1, threads=1)
    assert found.n_positions == 512
    assert found.n_vocab == 1024
    assert 0 < found.largest < LIMIT / 4


def test_a_wrong_conversion_is_seen(tmp_path: Path) -> None:
    [healthy] = build(CHECKPOINTS / "tiny-mixtral", tmp_path, "f32")
    faulty = with_fault(healthy.path, tmp_path / "faulty.gguf", change_rope_base)
    found = against_transformers(
        CHECKPOINTS / "tiny-mixtral", gguf=faulty, windows=1, context=64, threads=1
    )
    assert found.largest > 100 * LIMIT
