"""Small checkpoints of many architectures, and what transformers itself makes of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.calibration.lockstep.forward import LockstepForward
from quantkit.calibration.lockstep.run import run
from quantkit.calibration.lockstep.states import States
from quantkit.checkpoint.open import open_stored
from tests.architectures.small import LATENT, LOCAL, SMALL, Small

# Models that llama.cpp's converter does not know, or not as transformers has them.
OTHERS = {
    "jetmoe": Small(
        "jetmoe",
        "JetMoeForCausalLM",
        {**LOCAL, "kv_channels": 64, "intermediate_size": 128, "num_key_value_heads": 2},
    ),
    "doge": Small(
        "doge",
        "DogeForCausalLM",
        {"is_moe": True, "num_experts": 64, "num_experts_per_tok": 4},
    ),
    "longcat": Small(
        "longcat",
        "LongcatFlashForCausalLM",
        {
            **LATENT,
            "hidden_size": 128,
            "num_layers": 2,
            "num_hidden_layers": None,
            "head_dim": 16,
            "ffn_hidden_size": 256,
            "expert_ffn_hidden_size": 128,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
            "moe_topk": 3,
            "intermediate_size": None,
        },
    ),
    "step3p7": Small(
        "step3p7",
        "Step3p7ForConditionalGeneration",
        {
            "text_config": {
                **LOCAL,
                "hidden_size": 128,
                "head_dim": 32,
                "intermediate_size": 256,
                "moe_intermediate_size": 128,
                "share_expert_dim": 128,
                "n_routed_experts": 4,
                "swiglu_limits": [0.05, 0.0],
                "mlp_layer_types": ["sparse", "sparse"],
                "layer_types": ["sliding_attention", "full_attention"],
                "sliding_window": 64,
                "num_sliding_attention_heads": 4,
                "query_pre_attn_scalar": 32,
            },
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
        },
    ),
}
CPU = torch.device("cpu")
CHUNKS, CONTEXT = 3, 80


def small_model(name: str, folder: Path, **changes: Any) -> Path:
    """Write one of `SMALL` or `OTHERS`, as publishers store it."""
    from tests.architectures.make import make_small

    small: Small = {**SMALL, **OTHERS}[name]
    folder.mkdir()
    make_small(replace(small, config={**small.config, **changes}), folder)
    return folder


def with_fused_names(published: Path, folder: Path) -> Path:
    """The same model, its tensors as transformers has them in memory."""
    from safetensors.torch import save_file

    folder.mkdir()
    for file in published.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    state = ordinary_model(published).state_dict()
    tensors = {name: value.clone().contiguous() for name, value in state.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def ordinary_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    options: dict[str, Any] = {"dtype": torch.float32, "experts_implementation": "eager"}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    except ValueError:
        model = AutoModelForImageTextToText.from_pretrained(folder, **options)
    return model.eval()


def ordinary_logits(folder: Path, tokens: NDArray[np.int64]) -> list[Tensor]:
    model = ordinary_model(folder)
    with torch.inference_mode():
        chunks = torch.from_numpy(tokens)[:, None]
        return [model(input_ids=chunk, use_cache=False).logits[0] for chunk in chunks]


def some_tokens(n_tokens: int = 400) -> NDArray[np.int64]:
    return np.random.default_rng(3).integers(3, n_tokens, (CHUNKS, CONTEXT))


def opened(folder: Path) -> LockstepForward:
    return LockstepForward(open_stored(folder), CPU)


def streamed_logits(
    folder: Path, tokens: NDArray[np.int64], work: Path | None = None, **how: Any
) -> list[Tensor]:
    """What the layers, one at a time, make of tokens; with ``work``, states go to disk there."""
    found: dict[int, Tensor] = {}
    states = States(
        work or Path(), len(tokens), CPU, spill=work is not None, durable=work is not None
    )

    def finish_layer(_layer: int, _routing: object) -> None:
        states.commit()
        states.turn_over()

    how.setdefault("finish_layer", finish_layer)
    run(opened(folder), tokens, states, found.__setitem__, **how)
    return [found[chunk] for chunk in range(len(tokens))]


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Of logits, relative; the largest of all chunks."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)
