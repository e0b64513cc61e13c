"""How a checkpoint of any architecture predicts a text, with a layer of it in memory."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantkit.calibration.lockstep.losses import losses_of, scored_from
from quantkit.calibration.lockstep.once import run_once
from quantkit.calibration.settings import Settings
from quantkit.calibration.text import Corpus
from quantkit.checkpoint.checkpoint import Checkpoint


def token_losses(
    checkpoint: Checkpoint,
    corpus: Corpus,
    settings: Settings,
    report: Callable[[float, int], None] = lambda _done, _layers: None,
) -> tuple[NDArray[np.float64], int]:
    """Minus the log-probability of each scored token, and the number of the model's parameters.

    The tokens are those of the second half of each chunk, as for llama-perplexity.

    Args:
        checkpoint: with its tensors as they are stored.
        corpus: the text.
        settings: the device, and above how many bytes activations go to a temporary file.
        report: told the layers that are done, with fractions, of how many.

    Raises:
        CalibrationError: transformers has no such model, or it cannot be run over this text.
        CheckpointError: a weight cannot be read, or a file of them changed meanwhile.
        NoSpaceError: the activations do not fit on the disk of temporary files.

    """
    found: list[NDArray[np.float64]] = [np.empty(0)] * corpus.chunks

    def finish(number: int, logits: Tensor) -> None:
        found[number] = losses_of(logits, corpus.tokens[number])

    forward = run_once(
        checkpoint,
        corpus.tokens,
        finish,
        settings,
        report,
        last=corpus.context - scored_from(corpus.context),
    )
    return np.concatenate(found), forward.n_parameters
