"""What today's readers of GPTQ make of our folders; what they computed, kept for every run.

``QUANTKIT_READERS`` names the Python of an environment with gptqmodel, optimum, transformers and a
PyTorch for the CPU; docs/gptq.md says how to make one. With ``-m readers`` each folder is loaded in
each of them, and what GPTQModel and auto-gptq computed is written to ``golden.json`` if
QUANTKIT_GOLDEN is set. auto-gptq gets an environment of its own by itself (tests/environments.py).
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from quantkit.formats.gptq import load
from tests import auto_gptq
from tests.formats.bnb.folders import write_dequantized
from tests.readers.synthetic import TOKENS, synthetic_folder

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' and torch's own

GOLDEN = Path(__file__).with_name("golden.json")
SCRIPT = Path(__file__).with_name("in_their_environment.py")
MIXTURES = ["qwen3moe", "glm4moe", "mixtral"]
DENSE = ["gemma3", "llama"]
READ = ["qwen3moe", *DENSE]
BY_AUTO_GPTQ = ["mixtral", "llama"]  # the architectures that it was made for
# GPTQModel 7.7 wants a Mixtral's experts under other names than every other reader, and its defuser
# 0.0.28 computes GLM-4-MoE's routing as an earlier transformers did. Both say so.
REFUSED = {"mixtral": "down_proj.qweight", "glm4moe": "no attribute 'sigmoid'"}
_SHOWN = 16  # of the vocabulary, in golden.json


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    work = tmp_path_factory.mktemp("synthetic")
    return {name: synthetic_folder(name, work) for name in (*MIXTURES, *DENSE)}


def wanted(folder: Path, out: Path) -> NDArray[np.float32]:
    """The logits of the dequantized weights, in float32."""
    weights = write_dequantized(folder, out)
    model = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    return logits(model.eval())


def logits(model: Any) -> NDArray[np.float32]:
    with torch.inference_mode():
        found: NDArray[np.float32] = model(input_ids=torch.from_numpy(TOKENS)).logits.numpy()
    return found


def error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", READ)
def test_our_own_load_computes_what_gptqmodel_did(name: str, folders: dict[str, Path]) -> None:
    found = logits(load(folders[name]))
    golden = json.loads(GOLDEN.read_text())[name]
    expected = np.array(golden, np.float32)
    assert error(found[..., :_SHOWN], expected) < 1e-2


@pytest.mark.parametrize("name", BY_AUTO_GPTQ)
def test_our_own_load_computes_what_auto_gptq_did(name: str, folders: dict[str, Path]) -> None:
    found = logits(load(folders[name]))
    expected = np.array(json.loads(GOLDEN.read_text())[f"{name}, auto-gptq"], np.float32)
    assert error(found[..., :_SHOWN], expected) < 1e-2


@pytest.fixture(scope="module")
def python() -> str:
    found = os.environ.get("QUANTKIT_READERS")
    if not found:
        pytest.skip("QUANTKIT_READERS names no Python with gptqmodel; see docs/gptq.md.")
    return found


def read(python: str, reader: str, folder: Path) -> dict[str, Any]:
    """What a reader says of a folder."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [python, str(SCRIPT), reader, str(folder), json.dumps(TOKENS.tolist())],
        capture_output=True,
        text=True,
        check=False,
        env={**own, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


@pytest.mark.readers
@pytest.mark.parametrize("name", REFUSED)
def test_gptqmodel_refuses(name: str, python: str, folders: dict[str, Path]) -> None:
    """Never silently: our own `load` is for these."""
    assert REFUSED[name] in read(python, "gptqmodel", folders[name])["failed"]


@pytest.mark.readers
@pytest.mark.parametrize("name", READ)
def test_gptqmodel(name: str, python: str, folders: dict[str, Path], tmp_path: Path) -> None:
    answer = read(python, "gptqmodel", folders[name])
    assert "failed" not in answer, answer["failed"]
    found = np.array(answer["logits"], np.float32)
    assert error(found, wanted(folders[name], tmp_path / "weights")) < 1e-2
    keep(name, found)


@pytest.mark.readers
def test_auto_gptq(folders: dict[str, Path], tmp_path: Path) -> None:
    """By the lines of our card."""
    read = auto_gptq.logits([folders[name] for name in BY_AUTO_GPTQ], TOKENS, tmp_path)
    for name, found in zip(BY_AUTO_GPTQ, read, strict=True):
        assert error(found, wanted(folders[name], tmp_path / name)) < 1e-2
        keep(f"{name}, auto-gptq", found)


def keep(name: str, found: NDArray[np.float32]) -> None:
    """Write what a reader computed to golden.json, if that is wanted."""
    if os.environ.get("QUANTKIT_GOLDEN"):
        golden = json.loads(GOLDEN.read_text())
        golden[name] = np.round(found[..., :_SHOWN].astype(float), 6).tolist()
        GOLDEN.write_text(json.dumps(golden, indent=None, sort_keys=True) + "\n")


@pytest.mark.readers
@pytest.mark.parametrize("name", DENSE)
def test_transformers(name: str, python: str, folders: dict[str, Path], tmp_path: Path) -> None:
    answer = read(python, "transformers", folders[name])
    assert "failed" not in answer, answer["failed"]
    assert not answer["missing"]
    found = np.array(answer["logits"], np.float32)
    assert error(found, wanted(folders[name], tmp_path / "weights")) < 1e-2


@pytest.mark.readers
@pytest.mark.parametrize("name", MIXTURES)
def test_transformers_does_not_find_the_experts(
    name: str, python: str, folders: dict[str, Path]
) -> None:
    """Which is why no snippet has it: once it does, cards and docs/gptq.md can say so."""
    answer = read(python, "transformers", folders[name])
    assert "failed" in answer or any(".experts." in key for key in answer["missing"])
