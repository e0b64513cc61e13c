"""A described model that llama.cpp would not load is refused before a weight is read."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.cli.command import quantkit, refusal
from tests.large_experts import large_experts

WEIGHTS = "model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a norm that llama.cpp wants, which the converter does not miss."""
    folder = large_experts(
        tmp_path_factory.mktemp("lacking") / "model", hidden=256, width=256, experts=4
    )
    (folder / "model.safetensors.index.json").unlink()
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.0.self_attn.q_norm.weight"]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.mark.parametrize("option", ["--dry-run", "--no-smoke"])
def test_a_missing_tensor(option: str, folder: Path, tmp_path: Path) -> None:
    said = refusal(quantkit("build", folder, "-q", "q8_0", "-o", tmp_path / "out", option))
    assert "llama.cpp does not load" in said
    assert "blk.0.attn_q_norm.weight" in said
    assert not (tmp_path / "out").exists()
