"""FP8 checkpoints as plain floats: what transformers makes of them, whatever rows are read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantkit.checkpoint.open import open_stored
from quantkit.checkpoint.scaled import KIND, as_meant, block_size
from quantkit.core.errors import CheckpointError
from tests.architectures.make import make_checkpoint, make_small
from tests.architectures.stored import STORED
from tests.published import model_of

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' and torch's own

ROUNDED = 0.04  # FP8 has three bits behind the leading one
_TORCH = {"BF16": torch.bfloat16, "F32": torch.float32}


def made(name: str, folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint in FP8, and the weights that were rounded to it."""
    make_checkpoint(name, folder / name)
    (folder / "plain").mkdir()
    make_small(STORED[name].small, folder / "plain")
    return folder / name, load_file(folder / "plain" / "model.safetensors")


def rows_of(folder: Path, step: int = 7) -> dict[str, torch.Tensor]:
    """Every tensor of the view, read some rows at a time."""
    view = as_meant(open_stored(folder))
    assert view.read_rows is not None
    found = {}
    for name, tensor in view.tensors.items():
        count = tensor.n_elements // tensor.shape[-1]
        parts = [
            view.read_rows(name, first, min(step, count - first)) for first in range(0, count, step)
        ]
        raw = torch.from_numpy(np.concatenate(parts))
        found[name] = raw.view(_TORCH[tensor.dtype]).view(tensor.shape)
    return found


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.native  # for its time
def test_it_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    folder = tmp_path / "qwen35-fp8"
    make_checkpoint(folder.name, folder)
    how = FineGrainedFP8Config(dequantize=True)
    state = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=how
    ).state_dict()
    found = rows_of(folder)
    assert found.keys() >= state.keys()
    for name, values in state.items():
        assert torch.equal(found[name].to(values.dtype), values), name


@pytest.mark.parametrize("name", ["qwen3moe-fp8", "qwen3moe-fp8-ct-block", "qwen3-fp8-channel"])
def test_it_is_near_what_was_rounded(name: str, tmp_path: Path) -> None:
    """Matrices of one and a half blocks among them, which transformers 5.23 gets wrong."""
    folder, plain = made(name, tmp_path)
    found = rows_of(folder, step=100)
    assert found.keys() == plain.keys()
    for tensor, values in found.items():
        assert error(values, plain[tensor]) < ROUNDED, tensor


def test_matrices_that_are_stored_together(tmp_path: Path) -> None:
    """Rows may begin in one and end in the next."""
    folder, plain = made("qwen3moe-fp8", tmp_path)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.experts.{}.up_proj.weight"
    both = "model.layers.0.mlp.experts.up_proj.weight"
    for end in ("", "_scale_inv"):
        tensors[both + end] = torch.stack([tensors.pop(name.format(e) + end) for e in range(2)])
    save_file(tensors, file, {"format": "pt"})
    wanted = torch.stack([plain[name.format(e)] for e in range(2)])
    assert error(rows_of(folder, step=50)[both], wanted) < ROUNDED


def test_blocks_are_what_either_config_says() -> None:
    group = {"weights": {"block_structure": [128, 64]}}
    assert block_size({"quantization_config": {"config_groups": {"group_0": group}}}) == (128, 64)
    assert block_size({"quantization_config": {"weight_block_size": [64, 128]}}) == (64, 128)
    assert block_size({"quantization_config": {"weight_block_size": [0, 128]}}) is None
    assert block_size({}) is None


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder, _ = made("qwen3moe-fp8", tmp_path)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.self_attn.q_proj.weight_scale_inv"
    save_file({**tensors, name: tensors[name].repeat(3, 1)}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="does not fit what it scales"):
        as_meant(open_stored(folder))


def test_what_is_no_fp8_is_left_alone(tmp_path: Path) -> None:
    stored = open_stored(model_of("qwen3moe", tmp_path))
    assert not any(tensor.dtype == KIND for tensor in stored.tensors.values())
    assert as_meant(stored) is stored
