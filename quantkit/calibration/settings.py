"""How a model is run over text, what a run depends on, and how far it is."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from quantkit.building.source import identify_source
from quantkit.calibration.text import Corpus
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.core.errors import CalibrationError
from quantkit.core.version import __version__

FEWEST_TOKENS = 256
# Raise it whenever the same weights and text give other statistics, layers or merges: what was made
# or begun before then serves no more.
_ALGORITHM = 6
# What config.json says that computes nothing. All else counts, whether quantkit knows it or not.
_COMPUTES_NOTHING = {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run a model over text.

    ``fewest_tokens``: experts with fewer are shown others' tokens; 0 for none. ``max_memory``:
    bytes of activations that are kept in memory, above which they go to disk.
    """

    device: str = "cpu"
    fewest_tokens: int = FEWEST_TOKENS
    max_memory: int = 4 * 2**30


@dataclass(frozen=True, slots=True)
class Step:
    """How far a run is: layers done of so many, with fractions, and tokens per second."""

    layers: float
    n_layers: int
    tokens_per_second: float


def identify(checkpoint: Checkpoint, corpus: Corpus, settings: Settings) -> dict[str, Any]:
    """Everything that the result of a run depends on, down to rounding.

    Which threads, processor and version of PyTorch round the last bits is left out: a matrix that
    was made on another machine serves.
    """
    import transformers

    config = {k: v for k, v in checkpoint.config.items() if k not in _COMPUTES_NOTHING}
    return {
        "quantkit": __version__,
        "transformers": transformers.__version__,
        "algorithm": _ALGORITHM,
        "source": identify_source(checkpoint),
        "config": config,
        "tokens": hashlib.sha256(corpus.tokens.tobytes()).hexdigest(),
        "shape": corpus.tokens.shape,
        "fewest_tokens": settings.fewest_tokens,
        "device": settings.device,
    }


def digest(identity: Mapping[str, Any]) -> str:
    """A short name for an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def find_device(name: str) -> torch.device:
    """The device called ``cpu`` or ``cuda``.

    Raises:
        CalibrationError: there is no such device here.

    """
    if name == "cuda" and not torch.cuda.is_available():
        raise CalibrationError(
            "--device cuda finds no GPU that this PyTorch can use; use --device cpu, or install "
            "a PyTorch with CUDA."
        )
    return torch.device(name)
