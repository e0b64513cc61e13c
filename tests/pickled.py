"""Checkpoints saved again as ``pytorch_model*.bin``, as transformers did before safetensors."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from quantkit.checkpoint.names import INDEX, PICKLE_INDEX


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder with safetensors."""
    state: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        state |= load_file(file)
    return state


def pickled(
    checkpoint: Path,
    folder: Path,
    files: int = 1,
    *,
    tied: bool = False,
    more: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """A checkpoint as torch.save stores it, with buffers that old tools stored as well.

    Args:
        checkpoint: a folder with safetensors.
        folder: what is made.
        files: how many weight files; tensors go to them in turn.
        tied: let the output matrix be the embeddings, in the first file.
        more: tensors that are added, or stand for those of the same name.

    """
    small = shutil.ignore_patterns("*.safetensors", INDEX)
    shutil.copytree(checkpoint, folder, ignore=small)
    state = weights_of(checkpoint) | dict(more or {})
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(32)
    state["model.layers.0.attention.bias"] = torch.ones(4, 4, dtype=torch.bool)
    state["model.layers.0.attention.masked_bias"] = torch.tensor(-1e4)
    if files == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    shared = ("lm_head.weight", "model.embed_tokens.weight") if tied else ()
    weight_map = {
        name: f"pytorch_model-{1 if name in shared else place % files + 1:05}-of-{files:05}.bin"
        for place, name in enumerate(state)
    }
    for file_name in set(weight_map.values()):
        part = {name: state[name] for name, file in weight_map.items() if file == file_name}
        torch.save(part, folder / file_name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / PICKLE_INDEX).write_text(json.dumps(index))
    return folder
