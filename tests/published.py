"""Small models of no family of ours in formats for transformers, and what they compute."""

import json
from pathlib import Path
from typing import Any

import torch

from quantkit.building import engine
from quantkit.building.work import prepare
from quantkit.calibration.gptq import build_gptq, plan_gptq
from quantkit.calibration.lockstep.forward import LockstepForward
from quantkit.calibration.lockstep.published import publish_model
from quantkit.calibration.settings import Settings
from quantkit.calibration.text import random_corpus
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.open import open_stored
from quantkit.families.model import Model
from quantkit.formats.bnb.codec import BnbOptions
from quantkit.formats.gptq.plan import GptqOptions
from quantkit.planning.quants import find_quants
from tests.calibration.small_models import ordinary_model, small_model

IDS = torch.tensor([[1, 5, 9, 33, 200, 77, 301, 12, 90, 5, 17, 440, 3, 88]])

# Wide enough that scales and what stays as it is weigh as little as in large models.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3moe": {
        "num_hidden_layers": 2,
        "tie_word_embeddings": True,
        "moe_intermediate_size": 128,
    },
    "qwen35moe": {"tie_word_embeddings": True},
    "qwen2moe": {},
    "gemma3": {},
    "glm4moe": {"tie_word_embeddings": True},
}


def model_of(name: str, folder: Path, **changes: Any) -> Path:
    """A small checkpoint as it is published, in a folder of that name."""
    return small_model(name, folder / name, **{**SHAPES.get(name, {}), **changes})


def in_float32(folder: Path) -> Path:
    """The same folder, whose model is to be computed in float32."""
    config = json.loads((folder / "config.json").read_text())
    text = {k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")}
    (folder / "config.json").write_text(json.dumps(text | {"dtype": "float32"}))
    return folder


def published(folder: Path) -> tuple[Checkpoint, Model]:
    """A checkpoint, and the model as transformers shows it."""
    stored = open_stored(folder)
    return stored, publish_model(LockstepForward(stored, torch.device("cpu")), stored)


def build_bnb(folder: Path, out: Path, quant: str = "bnb-nf4", **options: Any) -> Path:
    """One bitsandbytes quant."""
    stored, model = published(folder)
    work = prepare(stored, find_quants([quant]), bnb=BnbOptions(**options), published=model)
    (artifact,) = engine.build(work, out, jobs=1, max_memory=2**30)
    return artifact.path


def made_gptq(folder: Path, out: Path, quant: str = "gptq-int4", **options: Any) -> Path:
    """One GPTQ quant, calibrated on noise."""
    stored, model = published(folder)
    plan = plan_gptq(
        stored,
        model,
        random_corpus(500, 4, 64),
        find_quants([quant])[0],
        GptqOptions(**options),
        Settings(),
        base_name=folder.name,
    )
    return build_gptq(plan, out).path


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """What a model of transformers gives, float32."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found.float()


def wanted_logits(folder: Path) -> torch.Tensor:
    """What transformers itself computes with a float32 checkpoint."""
    return logits(ordinary_model(folder))


def logits_with_the_same_experts(model: Any, other: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of two models, of which the second is given the first one's routing.

    Where two experts are as good as each other, how a processor rounds decides between them.
    """
    noted: list[Any] = []

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        noted.append(output)

    def follow(_module: Any, _inputs: Any, output: Any) -> Any:
        wanted = noted.pop(0)
        return tuple(x.to(y.dtype) for x, y in zip(wanted, output, strict=True))

    found = []
    for one, hook in ((model, note), (other, follow)):
        routers = [module for name, module in one.named_modules() if name.endswith(".gate")]
        handles = [router.register_forward_hook(hook) for router in routers]
        found.append(logits(one))
        for handle in handles:
            handle.remove()
    assert not noted
    return found[0], found[1]
