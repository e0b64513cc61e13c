"""Make checkpoints of `SMALL` and `STORED` with transformers: ``python -m ... FOLDER NAME...``.

In a process of its own: the tests need not wait for torch, and what it warns of is not their error.
"""

import json
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.architectures.coded import FOLDER
from tests.architectures.forms import store
from tests.architectures.small import COMMON, SMALL, Small
from tests.architectures.stored import STORED
from tests.architectures.stored_model import Stored
from tests.architectures.tokens import write_tokenizer

MOST_WEIGHTS = 2_000_000
SEED = 19


def make_checkpoint(name: str, folder: Path) -> None:
    """Write a checkpoint as publishers do: config.json, weights, tokenizer."""
    making = folder.with_name(f"{folder.name}.making")
    making.mkdir()
    if stored := STORED.get(name):
        make_small(stored.small, making)
        store_as(stored, making, str(folder.resolve()))
    else:
        make_small(SMALL[name], making)
    making.rename(folder)  # whole, or not there


def make_small(small: Small, folder: Path) -> None:
    """Write one of transformers' models, or of ours, with random weights."""
    if small.shapes:
        write_by_hand(folder, small)
    else:
        write_with_transformers(folder, small)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    n_weights = sum(weights.numel() for weights in tensors.values())
    if n_weights > MOST_WEIGHTS:
        raise ValueError(f"There are {n_weights:,} weights, more than {MOST_WEIGHTS:,}.")
    if small.predictor == "mtp":
        add_predictor(tensors)
    elif small.predictor == "layer":
        add_layer(tensors)
    if small.mxfp4:
        store_experts_in_mxfp4(tensors)
    if small.dropped is not None:
        tensors = {name: t for name, t in tensors.items() if not re.search(small.dropped, name)}
    save_file(tensors, file, {"format": "pt"})
    config = folder / "config.json"
    entries = {**json.loads(config.read_text()), **small.published}
    for entry in small.unpublished:
        del entries[entry]
    config.write_text(json.dumps(entries, indent=2))
    write_tokenizer(folder, small.vocabulary)


def store_as(stored: Stored, folder: Path, final: str) -> None:
    """Give a checkpoint the stored form and the further files that it is published with.

    ``final`` is where the folder will be: code that comes with it knows that.
    """
    file = folder / "model.safetensors"
    tensors = {name.replace(*stored.renamed): t for name, t in load_file(file).items()}
    if quantization := stored.quantization or stored.older_quantization:
        tensors = store(tensors, quantization)
    if stored.quantization:
        change(folder / "config.json", {"quantization_config": stored.quantization})
    for name, content in stored.files.items():
        if isinstance(content, str):
            (folder / name).write_text(content.replace(FOLDER, final))
        else:
            change(folder / name, content)
    for token, published in stored.tokens.items():
        text = (folder / "tokenizer.json").read_text()
        (folder / "tokenizer.json").write_text(text.replace(f'"{token}"', f'"{published}"'))
    for name in stored.removed:
        (folder / name).unlink()
    if stored.n_pickles == 0:
        save_file(tensors, file, {"format": "pt"})
    else:
        file.unlink()
        pickle_tensors(tensors, folder, stored.n_pickles)


def change(file: Path, entries: Mapping[str, Any]) -> None:
    """Write entries into a JSON file, which keeps its others where it is there."""
    content = json.loads(file.read_text()) if file.exists() else {}
    for name, entry in entries.items():
        inner = isinstance(entry, Mapping) and name in content
        content[name] = {**content[name], **entry} if inner else entry
    file.write_text(json.dumps(content, indent=2))


def pickle_tensors(tensors: Mapping[str, Any], folder: Path, n_shards: int) -> None:
    """Write what transformers wrote before safetensors: one file, or shards and their index."""
    if n_shards == 1:
        torch.save(dict(tensors), folder / "pytorch_model.bin")
        return
    where: dict[str, str] = {}
    for i in range(n_shards):
        shard = f"pytorch_model-{i + 1:05}-of-{n_shards:05}.bin"
        names = list(tensors)[i::n_shards]
        torch.save({name: tensors[name] for name in names}, folder / shard)
        where |= dict.fromkeys(names, shard)
    total = sum(weights.numel() * weights.element_size() for weights in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def write_with_transformers(folder: Path, small: Small) -> None:
    """Write config.json and weights of one of transformers' classes."""
    torch.manual_seed(SEED)
    kind = getattr(transformers, small.model)
    model = kind(kind.config_class(**entries_of(small, kind.config_class.attribute_map)))
    model.to(torch.bfloat16)
    scatter(model.parameters())
    model.save_pretrained(folder)


def write_by_hand(folder: Path, small: Small) -> None:
    """Write config.json and weights of a model that transformers does not know."""
    tensors = {name: torch.zeros(shape).to(torch.bfloat16) for name, shape in small.shapes.items()}
    scatter(tensors.values())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model_type = small.model.removesuffix("ForCausalLM").lower()
    entries = {"architectures": [small.model], "model_type": model_type, **small.config}
    (folder / "config.json").write_text(json.dumps(entries))


def entries_of(small: Small, names: Mapping[str, str]) -> dict[str, Any]:
    """The entries of a model's config.json; ``names`` are what its class calls common ones."""
    if "text_config" in small.config:
        text = {**COMMON, **small.config["text_config"]}
        return {"tie_word_embeddings": False, **small.config, "text_config": text}
    given = small.config
    common = {k: v for k, v in COMMON.items() if k not in given and names.get(k) not in given}
    changed = {k: v for k, v in given.items() if v is not None or k not in COMMON}
    return {**common, **changed}


def add_predictor(tensors: dict[str, Any]) -> None:
    """Add a layer like the last, and what is around it, as publishers name them."""
    (norm_name,) = (name for name in tensors if re.search(r"^model\.(language_model\.)?norm", name))
    last = norm_name.removesuffix("norm.weight") + f"layers.{COMMON['num_hidden_layers'] - 1}."
    norm = tensors[norm_name]
    for name in [name for name in tensors if name.startswith(last)]:
        tensors["mtp.layers.0." + name.removeprefix(last)] = tensors[name].flip(0).contiguous()
    for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        tensors[f"mtp.{name}.weight"] = norm.clone()
    wide = torch.randn(len(norm), 2 * len(norm), generator=torch.Generator().manual_seed(SEED))
    tensors["mtp.fc.weight"] = (0.05 * wide).to(norm.dtype)


def add_layer(tensors: dict[str, Any]) -> None:
    """Add one that predicts a token more as DeepSeek-V3 names it: a layer after the last."""
    n = 1 + max(int(found[1]) for name in tensors if (found := re.search(r"layers\.(\d+)", name)))
    last, added = f"model.layers.{n - 1}.", f"model.layers.{n}."
    for name in [name for name in tensors if name.startswith(last)]:
        tensors[added + name.removeprefix(last)] = tensors[name].flip(0).contiguous()
    norm, head = tensors["model.norm.weight"], tensors["lm_head.weight"]
    for name in ("enorm", "hnorm", "shared_head.norm"):
        tensors[f"{added}{name}.weight"] = norm.clone()
    tensors[f"{added}embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[f"{added}shared_head.head.weight"] = head.clone()
    wide = torch.randn(len(norm), 2 * len(norm), generator=torch.Generator().manual_seed(SEED))
    tensors[f"{added}eh_proj.weight"] = (0.05 * wide).to(norm.dtype)


def store_experts_in_mxfp4(tensors: dict[str, Any]) -> None:
    """Put random blocks in the place of experts: 32 values of four bits, and an exponent."""
    generator = torch.Generator().manual_seed(SEED)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape  # stored transposed
        shape = (experts, rows, columns // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=generator)
        scales = torch.randint(118, 124, shape, generator=generator)
        tensors[f"{name}_blocks"] = blocks.to(torch.uint8)
        tensors[f"{name}_scales"] = scales.to(torch.uint8)


def scatter(parameters: Iterable[Any]) -> None:
    """Random weights as trained ones are: a few outliers, norms and biases that differ."""
    generator = torch.Generator().manual_seed(SEED)

    def noise(like: Any) -> Any:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for weights in parameters:
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
