"""What the converter would pass on as other numbers, or does not read, is refused in a sentence."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.errors import CheckpointError, ConverterError
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


def test_groups_of_gptq_that_are_not_there(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Before anything is built: the last matrix may be hours away."""
    whole = stored_checkpoints(tmp_path_factory, ["qwen3-gptq4"])["qwen3-gptq4"]
    folder = shutil.copytree(whole, tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.g_idx"
    tensors[name][3] = 10**6
    save_file(tensors, folder / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"down_proj\.g_idx' of .* groups outside its"):
        open_checkpoint(folder)


def test_form_that_the_converter_asserts_not_to_meet(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    name = "qwen3-fp8-tensor"
    folder = stored_checkpoints(tmp_path_factory, [name])[name]

    with pytest.raises(ConverterError, match=r"is stored in a form that .*strategy == .*original"):
        open_checkpoint(folder)


def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing torch, for one, makes a folder there."""
    whole = stored_checkpoints(tmp_path_factory, ["qwen3-gptq4"])["qwen3-gptq4"]
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    checkpoint = open_checkpoint(whole)

    assert checkpoint.description is not None
    checkpoint.description.rows.close()
    assert not list(tmp_path.iterdir())
