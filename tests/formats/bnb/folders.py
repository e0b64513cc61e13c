"""Bitsandbytes artifacts as tests want them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from quantkit.building import engine
from quantkit.building.work import prepare
from quantkit.formats.bnb.codec import BnbOptions
from quantkit.formats.dequantized import open_artifact
from quantkit.formats.layout import FileOptions
from quantkit.planning.quants import find_quants

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
TEXT = "The statement raises an exception if"

_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def build_folder(
    checkpoint: Path, out: Path, quant: str, shard_size: int | None = None, **options: Any
) -> Path:
    """Build one bitsandbytes quant; options are those of ``BnbOptions``."""
    bnb = BnbOptions(**options)
    work = prepare(checkpoint, find_quants([quant]), FileOptions(shard_size=shard_size), bnb=bnb)
    (artifact,) = engine.build(work, out, jobs=2, max_memory=2**30)
    return artifact.path


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every shard, by name."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        assert not found.keys() & tensors.keys()
        found |= tensors
    return found


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a folder stands for, by their original names."""
    source = open_artifact(folder)
    found = {}
    for name, tensor in source.checkpoint.tensors.items():
        rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
        raw = torch.from_numpy(source.read_rows(name, 0, rows).copy())
        found[name] = raw.view(_TORCH[tensor.dtype]).view(tensor.shape)
    return found


def write_dequantized(folder: Path, out: Path) -> Path:
    """A float32 checkpoint of the weights that a folder stands for."""
    from safetensors.torch import save_file

    out.mkdir()
    tensors = {name: tensor.float() for name, tensor in dequantized(folder).items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    for file in folder.glob("tokenizer*"):
        (out / file.name).write_bytes(file.read_bytes())
    return out


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether dtype, shape and bytes are equal."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return bool(torch.equal(*raw))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())
