"""A model run with other weights in place of its own: what quantizing costs, in perplexity."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quantkit.calibrate.activations import Activations
from quantkit.calibrate.forward import Forward, Site
from quantkit.calibrate.text import Corpus
from quantkit.calibrate.weights import Weights
from quantkit.checkpoint.folder import open_quantized
from quantkit.encodings.gptq import Grid, round_to_nearest
from quantkit.families.published import published_names
from quantkit.formats.gptq.reader import open_artifact
from tests.calibrate.runs import opened

Substitute = Callable[[Weights, Site, str, Tensor], Tensor]


class Substituting:
    """A visitor that puts in other weights without looking at anything."""

    replaces = True

    def __init__(self, weights: Weights, substitute: Substitute) -> None:
        self._weights = weights
        self._substitute = substitute

    def observe(self, _site: Site, _inputs: Tensor, _share: float) -> None:
        pass

    def replace(self, site: Site, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            self._substitute(self._weights, site, role, weight)
            for role, weight in zip(site.roles, weights, strict=True)
        )


def run(folder: Path, corpus: Corpus, work: Path, substitute: Substitute) -> float:
    """The perplexity of text."""
    checkpoint, model = opened(folder)
    weights = Weights(checkpoint, model, torch.device("cpu"))
    forward = Forward(weights, corpus.context)
    work.mkdir(exist_ok=True)
    states = Activations(work, (*corpus.tokens.shape, model.hparams.hidden_size), spill=False)
    states.start(weights.embed(corpus.tokens))
    for layer in range(model.hparams.num_hidden_layers):
        forward.advance(layer, states, Substituting(weights, substitute))
    return forward.perplexity(states, corpus.tokens)


def original(_weights: Weights, _site: Site, _role: str, weight: Tensor) -> Tensor:
    return weight


def nearest(grid: Grid) -> Substitute:
    def substitute(_weights: Weights, _site: Site, _role: str, weight: Tensor) -> Tensor:
        return round_to_nearest(weight, grid).dequantize()

    return substitute


def of_artifact(folder: Path) -> Substitute:
    dequantized = open_artifact(open_quantized(folder))

    def substitute(weights: Weights, site: Site, role: str, weight: Tensor) -> Tensor:
        names = published_names(weights.target(site.layer, role))
        raw = dequantized.read_rows(names[site.expert or 0], 0, weight.shape[0])
        return torch.from_numpy(raw.view(np.float32).reshape(weight.shape))

    return substitute
