"""The checkpoints that are built both ways: small, and each odd in its own manner."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoint import vocabularies
from tests.random_checkpoints import (
    config_of,
    fuse_experts,
    random_checkpoint,
    random_tensors,
    write_tokenizer,
)
from tests.safetensors_writer import Tensor, to_bf16, write_checkpoint

TRAINED = Path(__file__).parents[1] / "checkpoints"

MODEL_CARD = """\
---
license: apache-2.0
license_name: apache-2.0-with-a-twist
license_link: https://example.org/license
language:
- en
- fr
- no
tags:
- moe
- text-generation-inference
pipeline_tag: text-generation
datasets:
- allenai/c4
- https://huggingface.co/datasets/somebody/some-corpus
base_model:
- mistralai/Mixtral-8x7B-v0.1
- https://huggingface.co/somebody/Another-Model-v2
model_creator: Somebody \u00c9lse
---
# A model

Its card says more than the metadata takes.
"""
GENERATION = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 50,
    "top_p": 0.95,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "transformers_version": "4.57.6",
}


@dataclass(frozen=True)
class Case:
    """A checkpoint that ``write`` puts into a folder, and how the converter is to read it.

    ``outtype`` is the type its weights already have. ``write_readable`` writes the same weights in
    a layout that the converter knows, where it does not know the first. In a checkpoint whose rows
    are too ``short`` for blocks of 256, no quant needs an importance matrix. Where our files are to
    differ from the converter's, ``differs`` has the key or tensor and the reason.
    """

    write: Callable[[Path], object]
    outtype: str = "bf16"
    write_readable: Callable[[Path], object] | None = None
    short: bool = False
    differs: Mapping[str, str] = field(default_factory=dict)


def random(
    family: str,
    outtype: str = "bf16",
    short: bool = False,
    differs: Mapping[str, str] | None = None,
    **changes: Any,
) -> Case:
    """A case with ``random_checkpoint``'s weights."""
    dtype = outtype.upper()
    return Case(
        lambda folder: random_checkpoint(folder, family, dtype=dtype, **changes),
        outtype,
        short=short,
        differs=differs or {},
    )


def trained(name: str) -> Case:
    return Case(lambda folder: shutil.copytree(TRAINED / name, folder))


def mixtral_with_card(folder: Path) -> None:
    random_checkpoint(folder, "mixtral", intermediate_size=256, shards=3)
    (folder / "README.md").write_text(MODEL_CARD, encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))


FUSED: dict[str, Any] = {"intermediate_size": 256, "num_hidden_layers": 1, "num_local_experts": 8}


def mixtral_fused(folder: Path) -> None:
    config = config_of("mixtral", **FUSED)
    tensors = fuse_experts(random_tensors(config), config["num_local_experts"])
    write_checkpoint(folder, tensors, config, shards=2)
    write_tokenizer(folder)


def saved_by_automodel(folder: Path) -> None:
    """The model inside a LlamaForCausalLM, whose tensors' names begin within ``model.``."""
    config = config_of("llama", num_hidden_layers=1, tie_word_embeddings=True)
    tensors = random_tensors(config)
    inside = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    write_checkpoint(folder, inside, config | {"architectures": ["LlamaModel"]}, shards=2)
    write_tokenizer(folder)


def null_heads(folder: Path) -> None:
    """Says null for its key-value heads, of which it then has as many as others."""
    random_checkpoint(
        folder,
        "mistral",
        num_hidden_layers=1,
        num_key_value_heads=4,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope_scaling={"type": "linear", "factor": 4.0},
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": None}))


def tied_with_head(folder: Path) -> None:
    """Ties its embeddings, and still carries an output matrix, which is another."""
    config = config_of("llama", num_hidden_layers=1)
    tensors = random_tensors(config)
    assert "lm_head.weight" in tensors
    write_checkpoint(folder, tensors, {**config, "tie_word_embeddings": True})
    write_tokenizer(folder)


def special_values(folder: Path, dtype: str) -> None:
    """Zeros of both signs, the smallest and large numbers, and rows that are all the same."""
    config = config_of("llama", num_hidden_layers=1, num_key_value_heads=4)
    tensors: dict[str, Tensor] = {}
    smallest = {"F32": 2.0**-149, "F16": 2.0**-24, "BF16": 2.0**-133}[dtype]
    for name, tensor in random_tensors(config, "F32", seed=1).items():
        assert isinstance(tensor, np.ndarray)
        rows = tensor
        if rows.ndim == 2:
            rows[0], rows[1], rows[2] = 0, -0.0, 0.5
            rows[3, ::2], rows[3, 1::2] = smallest, -smallest
            rows[4, :32], rows[5, 5] = 0, 3e4
            rows[6] = np.where(np.arange(rows.shape[1]) % 2, 1, -1)
            rows[7] *= 1e-5
        tensors[name] = to_bf16(rows) if dtype == "BF16" else rows.astype(f"float{dtype[1:]}")
    write_checkpoint(folder, tensors, config)
    write_tokenizer(folder)


def byte_level(folder: Path) -> None:
    """A one-layer model with GPT-2's vocabulary."""
    config = config_of(
        "llama",
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        vocab_size=50257,
        tie_word_embeddings=True,
        bos_token_id=50256,
        eos_token_id=50256,
    )
    write_checkpoint(folder, random_tensors(config), config)
    end = "<|endoftext|>"
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": end, "eos_token": end}
    fast = vocabularies.from_gguf("gpt-2", vocabularies.BYTE_LEVEL, None)
    vocabularies.write(folder, fast=fast, settings=settings)


LLAMA3: Mapping[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

# The names are folder names, from which the converter reads a model's name, size and version.
CASES: dict[str, Case] = {
    "tiny-mixtral": trained("tiny-mixtral"),
    "tiny-mistral": trained("tiny-mistral"),
    "Mixtral-8x1M-Instruct-v0.1": Case(mixtral_with_card),
    "mixtral-fused-8x1M": Case(
        mixtral_fused,
        write_readable=lambda folder: random_checkpoint(folder, "mixtral", **FUSED),
    ),
    # Grouped-query attention of 4, and n/8 = 2, n/16 = 1.
    "mixtral_4_experts_16_layers": random(
        "mixtral",
        num_local_experts=4,
        num_hidden_layers=16,
        num_attention_heads=8,
        head_dim=16,
        intermediate_size=32,
        rope_theta=None,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
    ),
    "mixtral ragged": random(
        "mixtral", short=True, hidden_size=320, num_attention_heads=5, num_key_value_heads=5,
        intermediate_size=96, num_experts_per_tok=3, shards=2,
    ),
    "mistral-16-layers-1B": random(
        "mistral", num_hidden_layers=16, num_attention_heads=8, intermediate_size=256,
        rope_theta=1000000, sliding_window=4096,
    ),
    "mistral-32-layers-v2": random(
        "mistral", num_hidden_layers=32, num_attention_heads=8, num_key_value_heads=8, head_dim=8,
        intermediate_size=64, shards=4,
    ),
    "mistral-wide-heads": Case(null_heads),
    "mistral-f16": random(
        "mistral", "f16", num_key_value_heads=1, num_hidden_layers=3, shards=2,
        rope_scaling={
            "rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 512,
            "attention_factor": 0.9, "beta_fast": 32, "beta_slow": 1,
        },
        differs={
            "key llama.rope.scaling.attn_factor": "llama.cpp's architecture llama does not read "
            "yarn_attn_factor, in which alone the converter writes attention_factor",
        },
    ),
    "mistral-yarn": random(
        "mistral", num_hidden_layers=1,
        rope_scaling={
            "rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 512,
        },
    ),
    "mistral-yarn-betas": random(
        "mistral", num_hidden_layers=1,
        rope_scaling={
            "rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 512,
            "beta_fast": 4.0,
        },
        differs={
            "tensor rope_freqs.weight": "llama.cpp's architecture llama does not read the betas",
            **dict.fromkeys(
                (
                    "key llama.rope.scaling.type",
                    "key llama.rope.scaling.factor",
                    "key llama.rope.scaling.original_context_length",
                    "key llama.rope.scaling.yarn_beta_fast",
                ),
                "the tensor of divisors takes their place",
            ),
            "key llama.rope.scaling.attn_factor": "what YaRN does to sine and cosine by itself",
        },
    ),
    "mistral-two-rope-settings": random(
        "mistral", num_hidden_layers=1, rope_theta=None,
        rope_scaling={"rope_type": "linear", "factor": 4.0},
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        differs={
            "key llama.rope.scaling.factor": "the converter lets rope_parameters win, transformers "
            "rope_scaling",
        },
    ),
    # What llama.cpp takes for Llama 2 70B, made thin.
    "llama-80-layers-70B": random(
        "llama", num_hidden_layers=80, num_attention_heads=8, num_key_value_heads=1, head_dim=4,
        intermediate_size=32,
    ),
    "llama-3.1-tied": random(
        "llama", num_hidden_layers=2, tie_word_embeddings=True, rope_theta=500000.0,
        rope_scaling=dict(LLAMA3), max_position_embeddings=131072,
    ),
    "llama-tied-with-head": Case(tied_with_head),
    "llama-saved-by-AutoModel": Case(saved_by_automodel),
    "llama-biases": random(
        "llama", num_hidden_layers=2, attention_bias=True, mlp_bias=True,
        num_attention_heads=2, num_key_value_heads=None, rope_theta=500000.0,
        rope_scaling={**LLAMA3, "factor": 32.0},
    ),
    "llama-odd": random(
        "llama", short=True, hidden_size=72, num_attention_heads=6, num_key_value_heads=3,
        intermediate_size=100, rms_norm_eps=None, rope_theta=None,
    ),
    "llama-special-values-bf16": Case(lambda folder: special_values(folder, "BF16")),
    "llama-special-values-f16": Case(lambda folder: special_values(folder, "F16"), "f16"),
    "llama-special-values-f32": Case(lambda folder: special_values(folder, "F32"), "f32"),
    "llama-byte-level": Case(byte_level, short=True),
}  # fmt: skip
