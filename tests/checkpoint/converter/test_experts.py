"""Experts that the converter waits for in vain are told of, where it does not say so itself."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.errors import ConverterError
from tests.architectures.ggufs import small_checkpoints

pytestmark = pytest.mark.native


def test_expert_that_lacks(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = small_checkpoints(tmp_path_factory, ["mellum"])["mellum"]
    folder = shutil.copytree(whole, tmp_path / "mellum")
    tensors = load_file(folder / "model.safetensors")
    lacking = next(name for name in tensors if name.endswith("experts.1.up_proj.weight"))
    del tensors[lacking]
    save_file(tensors, folder / "model.safetensors")

    layer = lacking.partition(".experts.")[0]
    with pytest.raises(ConverterError, match=rf"experts that {layer}.* some are missing"):
        open_checkpoint(folder)
