"""Loading in current transformers: experts quantized, right, and never silently otherwise."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from quantkit.core.errors import CheckpointError, PlanError
from quantkit.formats.bnb import load
from tests.formats.bnb.folders import (
    CHECKPOINTS,
    TEXT,
    build_folder,
    relative_error,
    write_dequantized,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' and torch's own

MIXTRAL = CHECKPOINTS / "tiny-mixtral"
IDS = torch.tensor([[1, 5, 9, 33, 200, 77, 301, 12, 90, 5, 17, 640, 3, 88]])


def n_bytes(model: Any) -> int:
    """Bytes of all parameters but the embeddings, with the scales that belong to them."""
    total = 0
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            continue
        parts = [parameter, getattr(parameter, "SCB", None)]
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            parts += [state.absmax, state.state2.absmax if state.nested else None]
        total += sum(part.nbytes for part in parts if part is not None)
    return total


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found.float()


def plain(folder: Path, **options: Any) -> Any:
    options = {"dtype": "auto", "device_map": "cpu", **options}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("folders")
    return {
        "nf4": build_folder(MIXTRAL, out / "nf4", "bnb-nf4"),
        "nested": build_folder(MIXTRAL, out / "nested", "bnb-nf4", double_quant=True),
        "fp4": build_folder(MIXTRAL, out / "fp4", "bnb-fp4", block_size=128),
        "int8": build_folder(MIXTRAL, out / "int8", "bnb-int8"),
        "kept": build_folder(MIXTRAL, out / "kept", "bnb-nf4", keep=("w1", "model.layers.0")),
    }


def test_nf4_is_small_where_plain_loading_is_not(folders: dict[str, Path]) -> None:
    whole = n_bytes(plain(MIXTRAL))
    ours = n_bytes(load(folders["nf4"])) / whole
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    theirs = n_bytes(plain(MIXTRAL, quantization_config=settings)) / whole
    print(f"of the bfloat16 model: load {ours:.3f}, load_in_4bit {theirs:.3f}")  # noqa: T201 - shown with -s
    assert ours <= 0.32
    assert theirs > 0.9
    assert n_bytes(load(folders["nested"])) / whole < ours


@pytest.mark.parametrize("kind", ["nf4", "nested", "fp4", "int8", "kept"])
def test_logits_are_those_of_the_dequantized_weights(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = load(folders[kind])
    layers = [m for name, m in model.named_modules() if ".experts." in name and name[-2:-1] == "w"]
    quantized = [m for m in layers if isinstance(m, Linear4bit | Linear8bitLt)]
    assert len(layers) == 4 * 8 * 3
    assert len(quantized) == (3 * 8 * 2 if kind == "kept" else len(layers))
    expected = plain(write_dequantized(folders[kind], tmp_path / "weights"), dtype=torch.float32)
    error = relative_error(logits(model), logits(expected))
    print(f"{kind}: relative error {error:.4f}")  # noqa: T201 - shown with -s
    assert error < 1e-2
    assert relative_error(logits(model), logits(plain(MIXTRAL))) > error / 2  # it was quantized


def test_it_generates(folders: dict[str, Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["nf4"])
    for kind in ("nf4", "int8"):
        model = load(folders[kind], device_map="auto")
        inputs = tokenizer(TEXT, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        assert tokens.shape[1] == inputs["input_ids"].shape[1] + 12
        assert model.config.quantization_config.load_in_8bit == (kind == "int8")


def test_plain_loading_of_experts_raises(folders: dict[str, Path]) -> None:
    """4-bit experts when they are loaded; 8-bit ones, which fit in shape, when they are used."""
    for kind in ("nf4", "nested", "fp4"):
        with pytest.raises(RuntimeError):
            plain(folders[kind])
    for options in ({}, {"dtype": torch.float32}, {"experts_implementation": "eager"}):
        model = plain(folders["int8"], **options)
        with pytest.raises(RuntimeError):
            logits(model)


@pytest.mark.parametrize("quant", ["bnb-nf4", "bnb-fp4", "bnb-int8"])
def test_a_dense_model_loads_with_transformers_alone(quant: str, tmp_path: Path) -> None:
    folder = build_folder(CHECKPOINTS / "tiny-mistral", tmp_path / "out", quant)
    model = plain(folder)
    expected = plain(write_dequantized(folder, tmp_path / "weights"), dtype=torch.float32)
    assert relative_error(logits(model), logits(expected)) < 1.5e-2
    assert torch.equal(logits(model), logits(load(folder, device_map="cpu")))


def test_shards_load(tmp_path: Path) -> None:
    split = build_folder(MIXTRAL, tmp_path / "split", "bnb-nf4", shard_size=10**6)
    whole = build_folder(MIXTRAL, tmp_path / "whole", "bnb-nf4")
    assert torch.equal(logits(load(split)), logits(load(whole)))


def test_bad_folders_get_a_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not quantized"):
        load(MIXTRAL)
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "nowhere")
    cut = shutil.copytree(folders["nf4"], tmp_path / "cut")
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        load(cut)
    with pytest.raises(PlanError, match="torch_dtype"):
        load(folders["nf4"], torch_dtype="float16")
