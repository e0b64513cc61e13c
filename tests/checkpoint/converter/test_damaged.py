"""What the converter would pass on as other numbers is refused when it is computed."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.errors import ConverterError
from tests.architectures.ggufs import stored_checkpoints

pytestmark = pytest.mark.native


def test_scale_of_nvfp4_that_is_nan(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = stored_checkpoints(tmp_path_factory, ["qwen3-nvfp4-mixed"])["qwen3-nvfp4-mixed"]
    folder = shutil.copytree(whole, tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    scale = tensors["model.layers.0.mlp.down_proj.weight_scale"]
    scale[1, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")

    description = open_checkpoint(folder).description
    assert description is not None
    rows = description.rows
    name = "blk.0.ffn_down.weight"
    assert rows.rows(name, 0, 1, rows.read).size
    with pytest.raises(ConverterError, match=r"a scale of its NVFP4 blocks is NaN.*download it"):
        rows.rows(name, 1, 1, rows.read)
