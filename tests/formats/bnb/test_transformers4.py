"""Plain ``from_pretrained`` in transformers 4, in the converter's environment."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.formats.bnb import load
from tests import native_tools
from tests.formats.bnb.folders import (
    CHECKPOINTS,
    build_folder,
    dequantized,
    relative_error,
    write_dequantized,
)
from tests.formats.bnb.routing import Choices, following

pytestmark = [pytest.mark.native, pytest.mark.filterwarnings("ignore")]

SCRIPT = Path(__file__).with_name("in_transformers4.py")
IDS = [1, 5, 9, 33, 200, 77, 301, 12, 90, 5, 17, 640, 3, 88]


def in_transformers4(folder: Path) -> dict[str, Any]:
    needed = native_tools.TRANSFORMERS4
    assert (needed / "stamp").exists(), "run `make vendor`"
    done = subprocess.run(
        [native_tools.PYTHON, SCRIPT, folder, json.dumps(IDS)],
        env={**os.environ, "PYTHONPATH": str(needed), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (x for x in done.stdout.splitlines() if x.startswith("RESULT "))
    result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    assert result["version"].startswith("4.57.")
    return result


@pytest.mark.parametrize(
    ("quant", "options"),
    [
        ("bnb-nf4", {}),
        ("bnb-nf4", {"double_quant": True, "keep": ("o_proj",)}),
        ("bnb-int8", {}),
    ],
)
def test_experts_load_quantized(quant: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder = build_folder(CHECKPOINTS / "tiny-mixtral", tmp_path / "out", quant, **options)
    result = in_transformers4(folder)
    assert result["experts"] == 4 * 8 * 3
    assert result["others"] == 4 * (3 if options else 4)
    found = torch.tensor(result["logits"])
    import transformers

    weights = write_dequantized(folder, tmp_path / "weights")
    assert dequantized(folder).keys() >= {"lm_head.weight"}
    exact = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    choices = Choices([torch.tensor(layer) for layer in result["taken"]])
    ids = torch.tensor([IDS])
    with torch.no_grad(), following(exact, choices) as agreement:
        expected = exact(ids).logits.flatten()
    agreement.check(4 * len(IDS))
    model = load(folder)
    with torch.no_grad(), following(model, choices) as agreement:
        ours = model(ids).logits.flatten()
    agreement.check(4 * len(IDS))
    errors = relative_error(found, expected), relative_error(found, ours)
    print(f"{quant} {options}: from the weights {errors[0]:.4f}, from load {errors[1]:.4f}")  # noqa: T201 - shown with -s
    assert errors[0] < 1.5e-2
    assert errors[1] < 2e-2


def test_a_dense_model(tmp_path: Path) -> None:
    folder = build_folder(CHECKPOINTS / "tiny-mistral", tmp_path / "out", "bnb-nf4")
    result = in_transformers4(folder)
    assert (result["experts"], result["others"]) == (0, 4 * 7)
    with torch.no_grad():
        ours = load(folder, device_map="cpu")(torch.tensor([IDS])).logits.flatten()
    assert relative_error(torch.tensor(result["logits"]), ours) < 1e-2
