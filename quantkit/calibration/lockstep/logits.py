"""What a checkpoint of any architecture predicts after some tokens, with a layer in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.calibration.lockstep.once import run_once
from quantkit.calibration.settings import Settings
from quantkit.checkpoint.checkpoint import Checkpoint

# What ggml rounds the inputs of a matrix to that is stored in such a type.
ROUNDINGS = {"F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Predictions:
    """Logits, each shape (last, vocabulary): exact, and with what goes into matrices rounded."""

    exact: NDArray[np.float32]
    rounded: dict[str, NDArray[np.float32]]


def predict(
    checkpoint: Checkpoint,
    tokens: NDArray[np.int64],
    last: int,
    roundings: Sequence[str],
    settings: Settings,
    report: Callable[[float, int], None] = lambda _done, _layers: None,
) -> Predictions:
    """Run some tokens through a model in float32, as it is and with rounded activations.

    The second shows what rounding alone does to this model: its layers may damp it or blow it up.

    Args:
        checkpoint: with its tensors as they are stored.
        tokens: shape (context,).
        last: how many of them are scored, at the end.
        roundings: names in `ROUNDINGS`.
        settings: the device, and above how many bytes activations go to a temporary file.
        report: told the layers that are done, with fractions, of how many.

    Raises:
        CalibrationError: transformers has no such model, or it cannot be run over these tokens.
        CheckpointError: a weight cannot be read, or a file of them changed meanwhile.
        NoSpaceError: the activations do not fit on the disk of temporary files.

    """
    chunks = np.tile(tokens, (1 + len(roundings), 1))
    kept: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(chunks)

    def finish(number: int, logits: Tensor) -> None:
        kept[number] = logits.float().cpu().numpy().copy()

    def rounded(number: int, x: Tensor) -> Tensor:
        return round_as(x, ROUNDINGS[roundings[number - 1]]) if number else x

    run_once(checkpoint, chunks, finish, settings, report, alter=rounded, last=last)
    return Predictions(kept[0], dict(zip(roundings, kept[1:], strict=True)))


def round_as(x: Tensor, kind: torch.dtype) -> Tensor:
    """Numbers rounded to a type; those beyond it as they are.

    Some models have sound activations above float16's largest number. Infinite ones would show
    nothing of rounding.

    Args:
        x: float32, any shape.
        kind: float16 or bfloat16.

    """
    rounded = x.to(kind).to(x.dtype)
    return torch.where(rounded.isinf(), x, rounded)
