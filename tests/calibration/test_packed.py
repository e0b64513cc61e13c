"""gpt-oss as it is published, its experts in MXFP4."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from quantkit.calibration.calibrate import calibrate
from quantkit.calibration.settings import Settings
from quantkit.calibration.sources import TextSource
from quantkit.calibration.text import make_corpus
from quantkit.checkpoint.mxfp4 import BLOCKS, SCALES, Packed
from quantkit.checkpoint.open import open_checkpoint, open_model
from quantkit.core.errors import CheckpointError
from tests.calibration.runs import text_file
from tests.calibration.small_models import small_model, with_fused_names
from tests.calibration.test_calibrate import read_imatrix


def matrix(folder: Path, text: Path, out: Path) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(folder)
    corpus = make_corpus(checkpoint, [TextSource(text)], 2, 128)
    made = calibrate(checkpoint, open_model(checkpoint), corpus, out, Settings())
    return read_imatrix(made.path)


@pytest.mark.native
def test_matrices_are_those_of_the_same_weights_as_floats(tmp_path: Path) -> None:
    packed = small_model("gpt-oss-mxfp4", tmp_path / "packed")
    plain = with_fused_names(packed, tmp_path / "plain")
    config = json.loads((plain / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    text = text_file(tmp_path)
    of_packed = matrix(packed, text, tmp_path / "packed.gguf")
    of_plain = matrix(plain, text, tmp_path / "plain.gguf")
    assert of_packed.keys() == of_plain.keys()
    assert {"blk.0.ffn_gate_exps.weight.in_sum2", "blk.0.ffn_down_exps.weight.counts"} <= set(
        of_packed
    )
    for name, values in of_plain.items():
        np.testing.assert_array_equal(of_packed[name], values)


@pytest.mark.parametrize(
    ("blocks", "scales", "why"),
    [
        ((2, 4, 3, 16), None, "lacks 'experts_scales'"),
        (None, (2, 4, 3), "lacks 'experts_blocks'"),
        ((2, 4, 3, 16), (2, 4, 1), "is no MXFP4"),  # these would broadcast
        ((2, 4, 3, 16), (2, 4, 3, 1), "is no MXFP4"),
        ((2, 4, 48), (2, 4, 3), "is no MXFP4"),
    ],
)
def test_damaged_pairs_are_refused(
    blocks: tuple[int, ...] | None, scales: tuple[int, ...] | None, why: str
) -> None:
    packed = Packed()
    for part, shape in ((BLOCKS, blocks), (SCALES, scales)):
        if shape is not None:
            values = torch.zeros(shape, dtype=torch.uint8)
            packed.add_tensor("experts", f"experts{part}", part, values.clone)
    with pytest.raises(CheckpointError, match=why):
        packed.convert("experts")
