"""One pass over the layers of a model, kept layer by layer, so that a killed one resumes."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantkit.building.output import check_space
from quantkit.building.source import require_unchanged
from quantkit.calibration.lockstep.forward import stand_ready
from quantkit.calibration.lockstep.losses import losses_of, scored_from
from quantkit.calibration.lockstep.run import run
from quantkit.calibration.lockstep.states import Room, States
from quantkit.calibration.lockstep.visitors import Visitors
from quantkit.calibration.progress import Layer, LayerJournal
from quantkit.calibration.routing import Routing
from quantkit.calibration.settings import Settings, Step
from quantkit.calibration.text import Corpus
from quantkit.checkpoint.checkpoint import Checkpoint, stored_view
from quantkit.core.errors import Interrupted


class Run:
    """One pass over all layers, begun or resumed."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        corpus: Corpus,
        settings: Settings,
        folder: Path,
        identity: Mapping[str, Any],
        *,
        replaces: bool = False,
        more_arrays: int = 0,
        more_bytes: int = 0,
    ) -> None:
        """Prepare a run; no weights are read.

        Args:
            checkpoint: whose weights.
            corpus: the text.
            settings: how to run.
            folder: for what must survive a kill.
            identity: what tells this run from others.
            replaces: whether a visitor replaces matrices.
            more_arrays: of activations that a visitor keeps beside the usual ones.
            more_bytes: of disk that ``finish_layer`` and the like write in all.

        Raises:
            CalibrationError: the model cannot be run over this text, or not on this device.
            CheckpointError: its tensors are not those of the model.

        """
        self.folder = folder
        self._checkpoint = stored_view(checkpoint)
        self.corpus = corpus
        self._identity = identity
        self.forward = stand_ready(self._checkpoint, corpus.context, settings)
        self._room = Room.of(
            self.forward,
            corpus.tokens.shape,
            settings.max_memory,
            is_durable=True,
            replaces=replaces,
            more_arrays=more_arrays,
        )
        self.n_bytes = self._room.n_bytes + more_bytes
        self.routing: Mapping[int, Routing] = {}
        """By the numbers of layers that have experts."""
        self.records: tuple[Mapping[str, int], ...] = ()
        self.resumed = 0
        self.losses: NDArray[np.float64] = np.empty(0)
        """Minus the log-probability of each token in the second half of each chunk."""

    def execute(
        self,
        visitors: Visitors,
        finish_layer: Callable[[int], Mapping[str, int]],
        report: Callable[[Step], None],
        say: Callable[[str], None],
        *,
        scores: bool = False,
    ) -> None:
        """Run every layer that no earlier run finished, in a folder that is held.

        ``finish_layer`` writes what the visitors have of a layer; then the layer counts as done,
        and what it returned, CRC-32s by name, is kept in ``records``. What is lost of another run
        is said before. If the text is to have ``scores``, ``losses`` are kept.

        Raises:
            CheckpointError: a weight cannot be read.
            NoSpaceError: the activations do not fit on the disk.
            Interrupted: Ctrl-C; what was done is kept.

        """
        forward, corpus = self.forward, self.corpus
        n_layers = len(forward.layers)
        journal = LayerJournal(self.folder, self._identity, n_layers)
        journal.start(say)
        check_space(self.folder, self.n_bytes)
        states = States(
            self.folder, corpus.chunks, forward.device, spill=self._room.spills, durable=True
        )
        self.resumed = len(journal.layers)
        if self.resumed:
            states.resume(self.resumed, journal.layers[-1].states)
        losses = [np.empty(0)] * corpus.chunks

        def finish(number: int, logits: Tensor) -> None:
            losses[number] = losses_of(logits, corpus.tokens[number])

        def keep_layer(layer: int, routing: Routing | None) -> None:
            crcs = finish_layer(layer)
            journal.record(Layer(states.commit(), dict(crcs), routing))
            states.turn_over()

        tell = partial(self._tell, report, time.monotonic())
        try:
            tell(self.resumed)
            run(
                forward,
                corpus.tokens,
                states,
                finish if scores else None,
                visitors,
                finish_layer=keep_layer,
                resumed=self.resumed,
                report=tell,
                last=corpus.context - scored_from(corpus.context),
            )
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped with {len(journal.layers)} of {n_layers} layers done; run the same "
                "command to go on from there."
            ) from None
        self.losses = np.concatenate(losses)
        self.records = tuple(layer.crcs for layer in journal.layers)
        self.routing = {n: layer.routing for n, layer in enumerate(journal.layers) if layer.routing}

    def _tell(self, report: Callable[[Step], None], started: float, done: float) -> None:
        seconds = time.monotonic() - started
        n_layers = len(self.forward.layers)
        tokens = (done - self.resumed) / n_layers * self.corpus.tokens.size
        report(Step(done, n_layers, tokens / seconds if seconds else 0.0))

    def require_unchanged(self) -> None:
        """Refuse the result if the weights are not those any more that the run began with.

        Raises:
            CheckpointError: a file of them is another now, or gone.

        """
        require_unchanged(self._checkpoint, self._identity["source"])
