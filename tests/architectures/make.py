"""Make checkpoints of `small.SMALL` with transformers: ``python -m ... FOLDER NAME...``.

In a process of its own: the tests need not wait for torch, and what it warns of is not their error.
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.architectures.small import COMMON, SMALL, Small
from tests.architectures.tokens import write_tokenizer

MOST_WEIGHTS = 2_000_000
SEED = 19


def make_checkpoint(name: str, folder: Path) -> None:
    """Write a checkpoint of `small.SMALL` as publishers do: config.json, weights, tokenizer."""
    small = SMALL[name]
    torch.manual_seed(SEED)
    kind = getattr(transformers, small.model)
    model = kind(kind.config_class(**entries_of(small))).to(torch.bfloat16)
    n_weights = sum(weights.numel() for weights in model.parameters())
    if n_weights > MOST_WEIGHTS:
        raise ValueError(f"{name} has {n_weights:,} weights, more than {MOST_WEIGHTS:,}.")
    scatter(model)
    model.save_pretrained(folder)
    if small.predictor:
        add_predictor(folder)
    config = folder / "config.json"
    entries = {**json.loads(config.read_text()), **small.published}
    for name in small.unpublished:
        del entries[name]
    config.write_text(json.dumps(entries, indent=2))
    write_tokenizer(folder, small.vocabulary)


def entries_of(small: Small) -> dict[str, Any]:
    """The entries of a model's config.json."""
    if "text_config" in small.config:
        text = {**COMMON, **small.config["text_config"]}
        return {**small.config, "text_config": text, "tie_word_embeddings": False}
    common = {key: value for key, value in COMMON.items() if key not in small.config}
    changed = {k: v for k, v in small.config.items() if v is not None or k not in COMMON}
    return {**common, **changed}


def add_predictor(folder: Path) -> None:
    """Add a layer like the last, and what is around it, as publishers name them."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    last = f"model.layers.{COMMON['num_hidden_layers'] - 1}."
    norm = tensors["model.norm.weight"]
    for name in [name for name in tensors if name.startswith(last)]:
        tensors["mtp.layers.0." + name.removeprefix(last)] = tensors[name].flip(0).contiguous()
    for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        tensors[f"mtp.{name}.weight"] = norm.clone()
    wide = torch.randn(len(norm), 2 * len(norm), generator=torch.Generator().manual_seed(SEED))
    tensors["mtp.fc.weight"] = (0.05 * wide).to(norm.dtype)
    save_file(tensors, file, {"format": "pt"})


def scatter(model: Any) -> None:
    """Random weights as trained ones are: a few outliers, norms and biases that differ."""
    generator = torch.Generator().manual_seed(SEED)

    def noise(like: Any) -> Any:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim < 2:
                weights += (0.05 * noise(weights)).to(weights.dtype)
            else:
                values = 0.05 * noise(weights)
                values[torch.rand(weights.shape, generator=generator) < 1e-3] *= 20
                weights.copy_(values)


def main() -> None:
    """Make each; what failed says so in a file beside the folder."""
    base, *names = sys.argv[1:]
    for name in names:
        try:
            make_checkpoint(name, Path(base) / name)
        except Exception:  # noqa: BLE001 - told to the test that needs it
            (Path(base) / f"{name}.failed").write_text(traceback.format_exc())


if __name__ == "__main__":
    main()
