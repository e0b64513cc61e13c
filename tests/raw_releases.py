"""Raw Mistral folders made from Hugging Face checkpoints, in every layout that was released."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

# One file, all of it; disjoint files; every matrix cut over the files.
LAYOUTS = (
    "safetensors",
    "safetensors-stacked",
    "pth",
    "pth-stacked",
    "pth-split",
    "pth-split-stacked",
)
_NAMES = (
    ("model.embed_tokens.", "tok_embeddings."),
    ("model.norm.", "norm."),
    ("lm_head.", "output."),
    ("model.layers.", "layers."),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "feed_forward.w1"),
    ("mlp.down_proj", "feed_forward.w2"),
    ("mlp.up_proj", "feed_forward.w3"),
    ("block_sparse_moe.", "feed_forward."),
)
_SPLIT_COLUMNS = ("wo.weight", "w2.weight", "tok_embeddings.weight")


def raw_release(checkpoint: Path, folder: Path, layout: str, files: int = 2) -> Path:
    """Write a checkpoint as a raw release; its card and tokenizer.model come along."""
    folder.mkdir(parents=True)
    config = json.loads((checkpoint / "config.json").read_text())
    (folder / "params.json").write_text(json.dumps(params_of(config)))
    state = raw_tensors(checkpoint, config)
    if "stacked" in layout:
        state = stack_experts(state, config["num_local_experts"])
    for name in ("tokenizer.model", "README.md"):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    if layout.startswith("safetensors"):
        save_file(state, folder / "consolidated.safetensors")
        return folder
    for number, part in enumerate(_distribute(state, files, split="split" in layout)):
        torch.save(part, folder / f"consolidated.{number:02d}.pth")
    return folder


def params_of(config: dict[str, Any]) -> dict[str, Any]:
    params = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "head_dim": config["hidden_size"] // config["num_attention_heads"],
        "hidden_dim": config["intermediate_size"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
        "rope_theta": config["rope_theta"],
        "max_position_embeddings": config["max_position_embeddings"],
    }
    if "num_local_experts" in config:
        params["moe"] = {
            "num_experts": config["num_local_experts"],
            "num_experts_per_tok": config["num_experts_per_tok"],
        }
    return params


def raw_tensors(checkpoint: Path, config: dict[str, Any]) -> dict[str, Any]:
    """All tensors under their raw names, rotary rows in pairs."""
    state = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is not a dictionary
                value = tensors.get_tensor(name)
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    key = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
                    value = in_pairs(value, config[key])
                state[raw_name(name)] = value
    return state


def in_pairs(weight: Any, heads: int) -> Any:
    rows, columns = weight.shape
    halves = weight.view(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns).contiguous()


def raw_name(name: str) -> str:
    for theirs, raw in _NAMES:
        name = name.replace(theirs, raw)
    return re.sub(r"self_attn\.(.)_proj", r"attention.w\1", name)


def stack_experts(state: dict[str, Any], experts: int) -> dict[str, Any]:
    """The layout of the first Mixtral: one matrix per part, with w2 of each expert transposed."""
    stacked = {}
    for name, value in state.items():
        match = re.fullmatch(r"(layers\.\d+\.)feed_forward\.experts\.0\.(w[123])\.weight", name)
        if match:
            parts = [
                state[f"{match[1]}feed_forward.experts.{e}.{match[2]}.weight"]
                for e in range(experts)
            ]
            if match[2] == "w2":
                parts = [part.T for part in parts]
            stacked[f"{match[1]}block_sparse_moe.{match[2]}"] = torch.cat(parts).contiguous()
        elif ".experts." not in name:
            stacked[name.replace("feed_forward.gate", "block_sparse_moe.gate")] = value
    return stacked


def _distribute(state: dict[str, Any], files: int, split: bool) -> list[dict[str, Any]]:
    names = list(state)
    if not split:
        return [{name: state[name] for name in names[number::files]} for number in range(files)]
    parts: list[dict[str, Any]] = [{} for _ in range(files)]
    for name, value in state.items():
        for number in range(files):
            if value.ndim == 1 or ".gate." in name:
                parts[number][name] = value
            else:
                axis = 1 if name.endswith(_SPLIT_COLUMNS) else 0
                parts[number][name] = value.chunk(files, axis)[number].contiguous()
    return parts
