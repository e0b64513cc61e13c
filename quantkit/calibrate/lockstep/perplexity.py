"""How a checkpoint of any architecture predicts a text, with a layer of it in memory."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantkit.build.output import check_space
from quantkit.build.source import identify_source, require_unchanged
from quantkit.calibrate.calibrate import Settings, find_device
from quantkit.calibrate.forward import losses_of
from quantkit.calibrate.lockstep.forward import LockstepForward
from quantkit.calibrate.lockstep.run import run
from quantkit.calibrate.lockstep.states import States, spilled_bytes
from quantkit.calibrate.text import Corpus
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
        report: told the layers that are done, of how many.

    Raises:
        CalibrationError: transformers has no such model, or it cannot be run over this text.
        CheckpointError: a weight cannot be read, or a file of them changed meanwhile.
        NoSpaceError: the activations do not fit on the disk of temporary files.

    """
    source = identify_source(checkpoint)
    forward = LockstepForward(checkpoint, find_device(settings.device))
    forward.require_context(corpus.context)
    found: list[NDArray[np.float64]] = [np.empty(0)] * corpus.chunks

    def finish(number: int, logits: Tensor) -> None:
        found[number] = losses_of(logits, corpus.tokens[number])

    with tempfile.TemporaryDirectory(prefix="quantkit-") as temporary:
        folder = Path(temporary)
        n_bytes = spilled_bytes(forward, corpus.tokens.shape, settings.max_memory)
        check_space(folder, n_bytes)
        states = States(folder, corpus.chunks, forward.device, spill=n_bytes > 0, durable=False)

        def finish_layer(layer: int) -> None:
            states.turn_over()
            report(layer + 1, len(forward.layers))

        run(forward, corpus.tokens, states, finish, finish_layer=finish_layer)
    require_unchanged(checkpoint, source)
    return np.concatenate(found), forward.n_parameters
