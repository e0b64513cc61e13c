"""A weight of a few bits without its scale is refused where others have theirs."""

from pathlib import Path

import numpy as np
import pytest

from quantkit.checkpoint.converter.scales import require_groups, require_scales
from quantkit.core.errors import CheckpointError
from quantkit.core.tensors import SourceTensor

FOLDER = Path("model")


def tensors(*names: str) -> dict[str, SourceTensor]:
    """Scales in float32, weights in FP8."""
    kinds = {name: "F32" if "scale" in name else "F8_E4M3" for name in names}
    return {
        name: SourceTensor(name, kind, (2, 2), FOLDER, 0, 4 if kind == "F8_E4M3" else 16)
        for name, kind in kinds.items()
    }


@pytest.mark.parametrize("scale", ["weight_scale_inv", "weight_scale", "scale", "qscale_weight"])
def test_one_scale_lacks(scale: str) -> None:
    require_scales({}, tensors("a.weight", f"a.{scale}", "b.weight", f"b.{scale}"), FOLDER)

    with pytest.raises(CheckpointError, match=r"model has no scale of 'b\.weight', .* as F8_E4M3"):
        require_scales({}, tensors("a.weight", f"a.{scale}", "b.weight"), FOLDER)


@pytest.mark.parametrize("other", ["input_scale", "k_scale", "qscale_act", "activation_scale"])
def test_scale_of_something_else_is_none(other: str) -> None:
    names = ("a.weight", "a.weight_scale", f"a.{other}", "b.weight", f"b.{other}")
    with pytest.raises(CheckpointError, match=r"no scale of 'b\.weight'"):
        require_scales({}, tensors(*names), FOLDER)


def test_where_none_has_one_nothing_lacks() -> None:
    require_scales({}, tensors("a.weight", "b.weight"), FOLDER)


def test_second_scale_lacks() -> None:
    first, second = "weight_scale", "weight_scale_2"
    there = tensors("a.weight", f"a.{first}", f"a.{second}", "b.weight", f"b.{first}")

    with pytest.raises(CheckpointError, match=r"no weight_scale_2 of 'b\.weight'"):
        require_scales({}, there, FOLDER)
    require_scales({}, there | tensors(f"b.{second}"), FOLDER)


@pytest.mark.parametrize("block", [[2, 1], [1, 2], [2, 2]])
def test_more_blocks_than_config_says(block: list[int]) -> None:
    there = tensors("a.weight", "a.weight_scale_inv")  # 2 x 2 scales of 2 x 2 numbers

    require_scales({"quantization_config": {"weight_block_size": [1, 1]}}, there, FOLDER)
    config = {"quantization_config": {"weight_block_size": block}}
    with pytest.raises(CheckpointError, match=r"\[2, 2\], which is not what the weight_block_size"):
        require_scales(config, there, FOLDER)


@pytest.mark.parametrize("named", [[0, 1, 2, 1], [0, 1, -1, 1]])
def test_groups_that_are_not_there(named: list[int]) -> None:
    there = {
        "a.g_idx": SourceTensor("a.g_idx", "I32", (4,), FOLDER, 0, 16),
        "a.scales": SourceTensor("a.scales", "F16", (2, 8), FOLDER, 16, 32),
    }

    require_groups(there, lambda *_: np.array([0, 1, 1, 0], "<i4").view(np.uint8), FOLDER)
    with pytest.raises(CheckpointError, match=r"'a\.g_idx' of model names groups outside its"):
        require_groups(there, lambda *_: np.array(named, "<i4").view(np.uint8), FOLDER)
