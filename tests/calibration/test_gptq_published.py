"""GPTQ of models of no family of ours: names that readers know, nothing random, nothing lost."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from quantkit.core.errors import CheckpointError, PlanError
from quantkit.formats.gptq import load
from quantkit.formats.gptq.layer import PackedLinear
from tests.calibration.runs import TINY
from tests.calibration.test_gptq import built
from tests.formats.bnb.folders import relative_error, stored_tensors, write_dequantized
from tests.published import (
    IDS,
    in_float32,
    logits,
    logits_with_the_same_experts,
    made_gptq,
    model_of,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' and torch's own

MIXTURES = ["qwen3moe", "glm4moe", "qwen35moe"]
NAMES = [*MIXTURES, "gemma3"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    # Computed in float32: what bfloat16 rounds between layers says nothing about a folder.
    return {name: in_float32(model_of(name, folder)) for name in NAMES}


@pytest.fixture(scope="module")
def folders(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("folders")
    return {name: made_gptq(model, out / name) for name, model in models.items()}


def ordinary(folder: Path) -> Any:
    found = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return found.eval()


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_dequantized_weights(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    expected = ordinary(write_dequantized(folders[name], tmp_path / "weights"))
    error = relative_error(*logits_with_the_same_experts(load(folders[name]), expected))
    print(f"{name}: relative error {error:.4f}")  # noqa: T201 - shown with -s
    assert error < 1e-2


@pytest.mark.parametrize(
    "name",
    [
        "mixtral, 4 bits",
        pytest.param("mixtral, 3 bits", marks=pytest.mark.native),
        pytest.param("mixtral, 8 bits", marks=pytest.mark.native),
    ],
)
def test_a_mixtral_loads_too(name: str, tmp_path: Path) -> None:
    quant = f"gptq-int{name[-6]}"
    folder = built(TINY / "tiny-mixtral", tmp_path, quant, chunks=2).path
    expected = ordinary(write_dequantized(folder, tmp_path / "weights"))
    error = relative_error(*logits_with_the_same_experts(load(folder), expected))
    print(f"{name}: relative error {error:.4f}")  # noqa: T201 - shown with -s
    assert error < 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_layer_is_quantized_and_it_generates(
    name: str, folders: dict[str, Path]
) -> None:
    model = load(folders[name])
    assert not [path for path, x in model.named_parameters() if ".experts." in path and x.ndim > 2]
    plain = [path for path, module in model.named_modules() if type(module) is nn.Linear]
    told = tuple(
        key.removeprefix("-:")
        for key in json.loads((folders[name] / "config.json").read_text())[
            "quantization_config"
        ].get("dynamic", {})
    )
    for path in plain:
        assert path == "lm_head" or any(re.match(key, path) for key in told), path
    tokens = model.generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert tokens.shape == (1, IDS.shape[1] + 4)


def test_names_are_those_of_the_checkpoint(
    models: dict[str, Path], folders: dict[str, Path]
) -> None:
    for name in ("qwen3moe", "glm4moe", "gemma3"):
        source = load_file(models[name] / "model.safetensors")
        stored = stored_tensors(folders[name])
        packed = {x.removesuffix(".qweight") for x in stored if x.endswith(".qweight")}
        assert {f"{module}.weight" for module in packed} <= source.keys()
        for weight, tensor in source.items():
            if weight.removesuffix(".weight") not in packed:
                assert torch.equal(stored[weight], tensor)
    # Experts that are stored together are taken apart as GPTQModel and vLLM know them.
    stored = stored_tensors(folders["qwen35moe"])
    assert "model.layers.0.mlp.experts.3.gate_proj.qweight" in stored
    assert not any(".experts.gate_up_proj" in name for name in stored)


def test_what_does_not_fit_stays_and_is_told(tmp_path: Path) -> None:
    model = in_float32(model_of("gemma3", tmp_path, intermediate_size=480))
    folder = made_gptq(model, tmp_path / "out")
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert list(settings["dynamic"]) == [r"-:.*mlp\.down_proj$"]
    (quantized,) = settings["modules_in_block_to_quantize"]
    assert set(quantized) == {
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *("mlp.gate_proj", "mlp.up_proj"),
    }
    manifest = json.loads((tmp_path / "out" / "quantkit.json").read_text())
    (entry,) = manifest["artifacts"].values()
    assert "model.layers.0.mlp.down_proj.weight" in entry["unquantized"]
    loaded = load(folder)
    assert type(loaded.model.layers[1].mlp.down_proj) is nn.Linear
    assert isinstance(loaded.model.layers[1].mlp.up_proj, PackedLinear)
    expected = ordinary(write_dequantized(folder, tmp_path / "weights"))
    assert relative_error(logits(loaded), logits(expected)) < 1e-2


def test_groups_that_fit_nowhere_are_refused(tmp_path: Path) -> None:
    model = model_of("gemma3", tmp_path)
    with pytest.raises(PlanError, match="no linear layer of the model; give --group-size 128"):
        made_gptq(model, tmp_path / "out", group_size=96)


def test_a_missing_weight_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = stored_tensors(folders["qwen3moe"])
    lost = "model.layers.1.mlp.experts.2.down_proj"
    kept = {name: x for name, x in tensors.items() if not name.startswith(f"{lost}.")}
    cut = tmp_path / "cut"
    cut.mkdir()
    for file in folders["qwen3moe"].iterdir():
        if file.suffix != ".safetensors":
            (cut / file.name).write_bytes(file.read_bytes())
    save_file(kept, cut / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="experts"):
        load(cut)
