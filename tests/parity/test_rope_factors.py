"""Llama 3's rope factors, bit for bit, against the converter's own function."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.families import find_family
from tests import native_tools
from tests.random_checkpoints import config_of

pytestmark = pytest.mark.native

# torch's vectorized powers are off by one in the last place now and then, and differ from CPU to
# CPU; its plain ones are the C library's.
GENERATE = """
import json, os, sys
os.environ["ATEN_CPU_CAPABILITY"] = "default"
tree, configs, out = sys.argv[1:]
sys.path.insert(0, tree)
import conversion, torch
from conversion.llama import LlamaModel
class Model:
    def __init__(self, config):
        self.hparams = config
        self.rope_parameters = {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
    def format_tensor_name(self, key):
        return key
with torch.inference_mode():
    factors = [
        [tensor.tolist() for _, tensor in LlamaModel.generate_extra_tensors(Model(config))]
        for config in json.load(open(configs))
    ]
json.dump(factors, open(out, "w"))
"""


def configs() -> list[dict[str, Any]]:
    return [
        config_of(
            "llama",
            head_dim=head_dim,
            rope_theta=theta,
            rope_scaling={
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            },
        )
        for head_dim, theta, (factor, low, high, context) in product(
            (16, 32, 48, 64, 80, 96, 128, 160, 256),
            (1e4, 1e5, 1.5e5, 5e5, 1e6, 3e6, 8e6),
            ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4, 1, 2.5, 5000), (1.7, 0.3, 9, 4096)),
        )
    ]


def test_every_bit_is_the_converters(tmp_path: Path) -> None:
    listing, out, script = (tmp_path / name for name in ("configs.json", "out.json", "run.py"))
    listing.write_text(json.dumps(configs()))
    script.write_text(GENERATE)
    tree = native_tools.CONVERTER.parent
    native_tools.run([native_tools.PYTHON, script, tree, listing, out], makes=out)
    between = 0
    for config, (theirs,) in zip(configs(), json.loads(out.read_text()), strict=True):
        model = find_family(config).describe(config, ())
        ours = model.targets[-1].values
        assert np.array_equal(np.array(ours), np.array(theirs)), config
        between += len(set(theirs)) - 2
    assert between > 500
