"""What a stored form keeps of weights is near them, so that no test is about noise."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.architectures import unpack
from tests.architectures.small import Config
from tests.architectures.stored import STORED

NAME = "model.layers.0.mlp.experts.0.gate_proj.weight"
# Mean error in parts of the mean magnitude, for the bits that are kept.
BITS = {"fp8": 8, "float-quantized": 8, "int-quantized": 8, "gptq8": 8, "bitnet": 2}
BOUNDS = {8: 0.04, 4: 0.15, 2: 0.8}


def forms() -> dict[str, Config]:
    """Each form once, that of the first checkpoint which has it."""
    found: dict[str, Config] = {}
    for stored in STORED.values():
        quantization = stored.quantization or stored.older_quantization
        # AWQ's is written for its refusal; layers of DeepSeek-V4 and of mixtures are named.
        named = {"scale_fmt", "quantized_layers"} & quantization.keys()
        if not quantization or named or quantization["quant_method"] == "awq":
            continue
        form = quantization.get("format", quantization["quant_method"])
        bits = quantization.get("bits", "")
        mixed = quantization.get("store_dtype", "")
        groups = quantization.get("config_groups", {}).values()
        zero = [group for group in groups if not group["weights"].get("symmetric", True)]
        found.setdefault(f"{form}{bits}{mixed}{'-zero' if zero else ''}", quantization)
    return found


@pytest.mark.parametrize("form", forms())
def test_stored_weights_are_near_the_ones_before(form: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from tests.architectures.forms import store

    quantization = forms()[form]
    values = np.random.default_rng(3).normal(0, 0.05, (192, 256)).astype(np.float32)

    tensors = store({NAME: torch.from_numpy(values)}, quantization)
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"quantization_config": quantization}
    (tmp_path / "config.json").write_text(json.dumps(config))
    kept = unpack.weights(tmp_path)[NAME]

    assert len(tensors) > 1
    assert kept.quantized
    assert kept.values.shape == values.shape
    error = np.abs(kept.values * kept.scale - values).mean() / np.abs(values).mean()
    assert 0 < error < BOUNDS[BITS.get(form, 4)]
