"""How a checkpoint predicts a text, layer by layer: models far larger than memory can be scored."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantkit.build.output import check_space
from quantkit.build.source import identify_source, require_unchanged
from quantkit.calibrate.activations import Activations
from quantkit.calibrate.calibrate import Settings, find_device
from quantkit.calibrate.forward import Forward, Site
from quantkit.calibrate.text import Corpus
from quantkit.calibrate.weights import Weights
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.families.model import Decoder

_SPILLED_ARRAYS, _KEPT_ARRAYS = 3, 2


class Bystander:
    """A visitor of `Forward` that does nothing."""

    replaces = False

    def observe(self, site: Site, inputs: Tensor, share: float) -> None:
        """Nothing."""

    def replace(self, _site: Site, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The same weights."""
        return weights


def token_losses(
    checkpoint: Checkpoint,
    model: Decoder,
    corpus: Corpus,
    settings: Settings,
    report: Callable[[float, int], None] = lambda _done, _layers: None,
) -> NDArray[np.float64]:
    """Minus the log-probability of each scored token: the second half of each chunk.

    The exponential of their mean is the perplexity that llama-perplexity computes.

    Args:
        checkpoint: where weights come from; one matrix is in memory at a time.
        model: the checkpoint's.
        corpus: the text.
        settings: the device, and above how many bytes activations go to a temporary file.
        report: told the layers that are done, with fractions, of how many.

    Raises:
        CalibrationError: the model cannot be run over this text.
        CheckpointError: a weight cannot be read, or a file of them changed meanwhile.
        NoSpaceError: the activations do not fit on the disk of temporary files.

    """
    source = identify_source(checkpoint)
    weights = Weights(checkpoint, model, find_device(settings.device))
    forward = Forward(weights, corpus.context)
    shape = (corpus.chunks, corpus.context, model.hparams.hidden_size)
    n_bytes = int(np.prod(shape)) * 4
    spills = _KEPT_ARRAYS * n_bytes > settings.max_memory
    n_layers = model.hparams.num_hidden_layers

    def tell(layer: int, part: float) -> None:
        report(layer + part, n_layers)

    with tempfile.TemporaryDirectory(prefix="quantkit-") as temporary:
        folder = Path(temporary)
        if spills:
            check_space(folder, _SPILLED_ARRAYS * n_bytes)
        states = Activations(folder, shape, spill=spills)
        states.start(weights.embed(corpus.tokens))
        for layer in range(n_layers):
            forward.advance(
                layer,
                states,
                Bystander(),
                partial(tell, layer),
            )
            if spills:
                states.turn_over()
        losses = forward.losses(states, corpus.tokens)
    require_unchanged(checkpoint, source)
    return losses
