"""Checkpoints with random weights, in any shape a test asks for."""

import io
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np

from quantkit.families import find_family
from tests.safetensors_writer import Tensor, to_bf16, write_checkpoint

VOCABULARY = 384
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
}


@cache
def sentencepiece_model(size: int = VOCABULARY) -> bytes:
    """A BPE tokenizer with byte fallback, trained on what every Python carries."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(topics["assignment"].splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        character_coverage=0.999,
        normalization_rule_name="identity",  # llama.cpp changes no text before it merges
        remove_extra_whitespaces=False,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    """A small config.json; ``changes`` replace entries, None removes one."""
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    if family == "mixtral":
        config |= {"num_local_experts": 8, "num_experts_per_tok": 2}
    config |= changes
    return {key: value for key, value in config.items() if value is not None}


def random_tensors(
    config: Mapping[str, Any], dtype: str = "BF16", seed: int = 0
) -> dict[str, Tensor]:
    """Weights for a config: normal rows with a few outliers, norms near 1."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in find_family(config).describe(config, ()).sources.items():
        values = rng.standard_normal(shape, np.float32) * np.float32(0.05)
        if name.endswith("norm.weight"):
            values += 1
        else:
            values[rng.random(shape) < 1e-3] *= 20
        tensors[name] = (
            to_bf16(values) if dtype == "BF16" else values.astype(dtype.replace("F", "float"))
        )
    return tensors


def fuse_experts(tensors: Mapping[str, Any], n_experts: int) -> dict[str, Tensor]:
    """The same weights in the layout of newer tools: 3-D tensors with all experts of a layer."""
    fused: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if ".experts." not in name:
            fused[name.replace("block_sparse_moe", "mlp")] = tensor
        elif ".experts.0.w1." in name:
            parts = {
                part: [
                    tensors[name.replace(".experts.0.w1.", f".experts.{e}.{part}.")]
                    for e in range(n_experts)
                ]
                for part in ("w1", "w2", "w3")
            }
            at = name.partition(".block_sparse_moe")[0] + ".mlp.experts."
            dtype, (wide, hidden), _ = parts["w1"][0]
            gate_up = b"".join(
                gate[2] + up[2] for gate, up in zip(parts["w1"], parts["w3"], strict=True)
            )
            down = b"".join(matrix[2] for matrix in parts["w2"])
            fused[at + "gate_up_proj"] = (dtype, (n_experts, 2 * wide, hidden), gate_up)
            fused[at + "down_proj"] = (dtype, (n_experts, hidden, wide), down)
    return fused


def write_tokenizer(folder: Path) -> None:
    """The SentencePiece tokenizer of ``config_of``'s vocabulary."""
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    settings = {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "LlamaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def random_checkpoint(
    folder: Path,
    family: str,
    *,
    dtype: str = "BF16",
    shards: int = 1,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write a whole checkpoint folder and return it."""
    config = config_of(family, **changes)
    write_checkpoint(folder, random_tensors(config, dtype, seed), config, shards)
    write_tokenizer(folder)
    return folder
