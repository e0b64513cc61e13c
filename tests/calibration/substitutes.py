"""A model run with other weights in place of its own: what quantizing costs, in perplexity."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.calibration.lockstep.forward import LockstepForward
from quantkit.calibration.lockstep.losses import losses_of
from quantkit.calibration.lockstep.pieces import find_pieces
from quantkit.calibration.lockstep.run import run
from quantkit.calibration.lockstep.states import States
from quantkit.calibration.lockstep.visitors import Visitors
from quantkit.calibration.text import Corpus
from quantkit.checkpoint.folder import open_quantized
from quantkit.encodings.gptq import Grid
from quantkit.families.model import Target
from quantkit.families.published import published_names
from quantkit.formats.gptq.reader import open_artifact
from tests.calibration.runs import opened
from tests.encodings.rounding import round_to_nearest

Substitute = Callable[[Target, int, Tensor], Tensor]


class Substituting:
    """A `Replacer` that puts in other weights without looking at anything."""

    def __init__(self, folder: Path, substitute: Substitute) -> None:
        checkpoint, model = opened(folder)
        self.forward = LockstepForward(checkpoint, torch.device("cpu"))
        self._pieces = find_pieces(self.forward, checkpoint, model)
        self._targets = {(target.layer, target.role): target for target in model.targets}
        self._substitute = substitute

    def wants(self, parameter: str) -> bool:
        return parameter in self.forward.linears

    def take_in(self, inputs: Iterable[tuple[Tensor, float]], columns: int, what: str) -> None:
        pass

    def replace(self, parameter: str, expert: int | None, matrix: Tensor) -> Tensor:
        return torch.cat(
            [
                self._substitute(self._targets[p.layer, p.role], p.number, matrix[p.where])
                for p in self._pieces[parameter, expert]
            ]
        )


def logits(folder: Path, tokens: NDArray[np.int64], substitute: Substitute) -> list[Tensor]:
    """Per chunk, (context, vocabulary)."""
    replacer = Substituting(folder, substitute)
    states = States(Path(), len(tokens), torch.device("cpu"), spill=False, durable=False)
    found: dict[int, Tensor] = {}
    run(replacer.forward, tokens, states, found.__setitem__, Visitors(replacer=replacer))
    return [found[chunk] for chunk in range(len(tokens))]


def perplexity(folder: Path, corpus: Corpus, substitute: Substitute) -> float:
    """The perplexity of text."""
    pairs = zip(logits(folder, corpus.tokens, substitute), corpus.tokens, strict=True)
    return float(np.exp(np.concatenate([losses_of(*pair) for pair in pairs]).mean()))


def original(_target: Target, _number: int, weight: Tensor) -> Tensor:
    return weight


def nearest(grid: Grid) -> Substitute:
    def substitute(_target: Target, _number: int, weight: Tensor) -> Tensor:
        return round_to_nearest(weight, grid).dequantize()

    return substitute


def of_artifact(folder: Path) -> Substitute:
    dequantized = open_artifact(open_quantized(folder))

    def substitute(target: Target, number: int, weight: Tensor) -> Tensor:
        raw = dequantized.read_rows(published_names(target)[number], 0, weight.shape[0])
        return torch.from_numpy(raw.view(np.float32).reshape(weight.shape))

    return substitute
