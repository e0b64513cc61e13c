"""Conversions of small models, sound and faulty, and what a proof makes of them."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantkit.building.engine import build
from quantkit.building.work import prepare
from quantkit.calibration.lockstep import logits
from quantkit.checkpoint.open import open_checkpoint
from quantkit.planning.quants import find_quants
from quantkit.verification.proof import prove
from quantkit.verification.proving import prove_artifact
from tests.calibration.small_models import small_model
from tests.verification import conversion_faults as faults
from tests.verification.conversion_faults import Fault

_LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Case:
    """What differs from the small model of a name, and the faults that its conversion can have."""

    faults: Sequence[Fault]
    config: Mapping[str, Any] = field(default_factory=dict)


CASES: Mapping[str, Case] = {
    "llama": Case(
        [
            faults.wrong_rope_base,
            faults.rope_scaling_dropped,
            faults.rows_not_permuted,
            faults.gate_and_up_swapped,
        ],
        {"rope_parameters": _LLAMA_3},
    ),
    "qwen2": Case([faults.wrong_rope_base, faults.gate_and_up_swapped]),
    "qwen3": Case([faults.wrong_rope_base]),
    "gemma": Case([faults.norms_without_their_one, faults.gate_and_up_swapped]),
    # llama.cpp does not read it, but knows what the published ones have: the length of a head.
    "gemma2": Case(
        [faults.norms_without_their_one, faults.softcap_dropped],
        # So low that it changes much where logits are small.
        {"query_pre_attn_scalar": 64, "final_logit_softcapping": 4.0},
    ),
    "gemma3": Case(
        [faults.norms_without_their_one, faults.window_dropped],
        {"query_pre_attn_scalar": 64, "sliding_window": 64},
    ),
    "olmo2": Case([faults.wrong_rope_base]),
    "cohere2": Case([faults.window_dropped, faults.wrong_rope_base]),
    "granite": Case([faults.rows_not_permuted, faults.wrong_rope_base]),
    "glm4": Case([faults.head_half_rotated]),
    "stablelm": Case([faults.head_half_rotated]),
    "starcoder2": Case([faults.wrong_rope_base]),
    "olmoe": Case([faults.experts_swapped, faults.gate_and_up_swapped]),
    # llama.cpp always does what the published ones ask for.
    "qwen3moe": Case([faults.experts_swapped, faults.wrong_rope_base], {"norm_topk_prob": True}),
    "glm4moe": Case([faults.router_bias_dropped, faults.experts_swapped]),
    "gpt-oss": Case(
        [faults.window_dropped, faults.experts_swapped],
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    ),
    "deepseek2-lite": Case([faults.experts_swapped, faults.wrong_rope_base]),
    "qwen3next": Case([faults.experts_swapped]),
    "falcon-h1": Case([faults.gate_and_up_swapped]),
    "command-r": Case([faults.wrong_rope_base]),
}
_FAR = 100  # times the difference of a sound conversion


def check_architecture(name: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Sound files are proven, and every fault is found; the original is run once."""
    case = CASES[name]
    small = small_model(name, folder / "model", **case.config)
    _draw_router_biases(small / "model.safetensors")
    checkpoint = open_checkpoint(small)
    work = prepare(checkpoint, find_quants(["f32", "f16", "q8_0"]))
    exact, half, rounded = build(work, folder / "out", jobs=1, max_memory=2**30)
    _run_the_original_once(patch)
    sound = prove(checkpoint, exact.path, threads=1)
    for proof in (
        sound,
        prove(checkpoint, half.path, threads=1),
        prove_artifact(checkpoint, rounded.path, threads=1),
    ):
        assert proof.outcome == "proven", proof
        assert proof.open == ()
    assert sound.error is not None
    for fault in case.faults:
        faulty = folder / "faulty.gguf"
        shutil.copyfile(exact.path, faulty)
        fault(faulty)
        found = prove(checkpoint, faulty, threads=1)
        assert found.outcome == "wrong", (fault.__name__, found)
        assert found.error is not None
        assert found.error > _FAR * sound.error, (fault.__name__, found, sound)


def _draw_router_biases(file: Path) -> None:
    """transformers makes them zero."""
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith("e_score_correction_bias"):
            tensor.copy_(torch.linspace(-0.5, 0.5, len(tensor)))
    save_file(tensors, file, {"format": "pt"})


def _run_the_original_once(patch: pytest.MonkeyPatch) -> None:
    known: dict[tuple[Any, ...], logits.Predictions] = {}
    predict = logits.predict

    def remembered(checkpoint: Any, tokens: Any, last: int, roundings: Any, *more: Any) -> Any:
        key = (checkpoint.path, tokens.tobytes(), last, *roundings)
        if key not in known:
            known[key] = predict(checkpoint, tokens, last, roundings, *more)
        return known[key]

    patch.setattr(logits, "predict", remembered)
