"""The streamed forward pass against transformers' own, logit by logit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantkit.calibration.lockstep.forward import stand_ready
from quantkit.calibration.settings import Settings
from quantkit.core.errors import CalibrationError
from tests.calibration.runs import TINY, opened
from tests.calibration.small_models import streamed_logits
from tests.families import both
from tests.families.test_arithmetic import TOKENS, VALUES
from tests.random_checkpoints import (
    config_of,
    fuse_experts,
    random_checkpoint,
    random_tensors,
    write_tokenizer,
)
from tests.safetensors_writer import write_checkpoint

CHUNKS, CONTEXT = 2, 96


def our_logits(folder: Path, tokens: np.ndarray[Any, Any], work: Path | None) -> torch.Tensor:
    if work is not None:
        work.mkdir()
    return torch.stack(streamed_logits(folder, tokens, work))


def their_logits(folder: Path, tokens: np.ndarray[Any, Any]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.from_numpy(tokens)).logits
    return logits


def assert_same_logits(folder: Path, tmp_path: Path, context: int = CONTEXT) -> None:
    _, model = opened(folder)
    tokens = np.random.default_rng(1).integers(0, model.hparams.vocab_size, (CHUNKS, context))
    theirs = their_logits(folder, tokens)
    for work in (None, tmp_path / "work"):
        ours = our_logits(folder, tokens, work)
        error = (ours - theirs).norm() / theirs.norm()
        assert error < 2e-5, (work, float(error))


@pytest.mark.parametrize("name", ["tiny-mixtral", "tiny-mistral"])
def test_trained_models(name: str, tmp_path: Path) -> None:
    assert_same_logits(TINY / name, tmp_path)


ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3 rope, tied": (
        "llama",
        {
            "tie_word_embeddings": True,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "linear rope, biases": (
        "llama",
        {
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "yarn rope": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "window, long heads": ("mistral", {"sliding_window": 40, "head_dim": 128}),
    "three experts of five": (
        "mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 3, "rms_norm_eps": 1e-6},
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_models(case: str, tmp_path: Path) -> None:
    family, changes = ODD[case]
    assert_same_logits(random_checkpoint(tmp_path / "model", family, **changes), tmp_path)


@pytest.mark.parametrize("name", VALUES)
def test_every_value_that_is_built_is_run(name: str, tmp_path: Path) -> None:
    family, changes = VALUES[name]
    config = both.small_config(family, **changes)
    both.write(tmp_path / "model", config, both.small_tensors(both.shapes_of(config)))
    tokens = np.array([both.tokens_of(TOKENS)])
    theirs = torch.from_numpy(both.original_logits(tmp_path / "model", tokens[0].tolist()))
    ours = our_logits(tmp_path / "model", tokens, None)[0]
    assert (ours - theirs).norm() / theirs.norm() < 2e-5


@pytest.mark.parametrize("types", [None, ["full_attention", "sliding_attention"]])
def test_windows_of_layers(types: list[str] | None, tmp_path: Path) -> None:
    changes = {"sliding_window": 20, "num_hidden_layers": 2, "head_dim": 16, "layer_types": types}
    config = both.small_config("mistral", **changes)
    both.write(tmp_path / "model", config, both.small_tensors(both.shapes_of(config)))
    assert_same_logits(tmp_path / "model", tmp_path)


def test_a_window_that_a_llama_does_not_have(tmp_path: Path) -> None:
    """transformers' class does not read it."""
    config = both.small_config("llama", sliding_window=8)
    both.write(tmp_path / "model", config, both.small_tensors(both.shapes_of(config)))
    assert_same_logits(tmp_path / "model", tmp_path)


def test_experts_in_one_tensor_are_the_same_experts(tmp_path: Path) -> None:
    config = config_of("mixtral", num_hidden_layers=1, num_local_experts=4)
    tensors = random_tensors(config)
    for name, stored in (("split", tensors), ("fused", fuse_experts(tensors, 4))):
        write_checkpoint(tmp_path / name, stored, config)
        write_tokenizer(tmp_path / name)
    tokens = np.arange(64, dtype=np.int64).reshape(2, 32)
    split, fused = (our_logits(tmp_path / name, tokens, None) for name in ("split", "fused"))
    assert torch.equal(split, fused)


def test_what_cannot_be_run_is_refused() -> None:
    checkpoint, _ = opened(TINY / "tiny-mistral")
    with pytest.raises(CalibrationError, match="--context 513 is more than the 512"):
        stand_ready(checkpoint, 513, Settings())


def test_activations_that_are_not_finite_are_reported(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", "mistral", dtype="F32", num_hidden_layers=1)
    config = config_of("mistral", num_hidden_layers=1)
    tensors: dict[str, Any] = dict(random_tensors(config, "F32"))
    tensors["model.layers.0.mlp.up_proj.weight"] *= np.float32(1e38)
    write_checkpoint(folder, tensors, config)
    with pytest.raises(CalibrationError, match=r"not finite in what .*layer 0"):
        our_logits(folder, np.arange(64).reshape(2, 32), None)
