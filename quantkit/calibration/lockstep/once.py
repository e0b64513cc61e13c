"""A run from the first layer to the last of which nothing is kept but the scores."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantkit.building.output import check_space
from quantkit.building.source import identify_source, require_unchanged
from quantkit.calibration.lockstep.forward import LockstepForward
from quantkit.calibration.lockstep.run import run
from quantkit.calibration.lockstep.states import Room, States
from quantkit.calibration.lockstep.visitors import Visitors
from quantkit.calibration.routing import Routing
from quantkit.calibration.settings import Settings, find_device
from quantkit.checkpoint.checkpoint import Checkpoint


def run_once(
    checkpoint: Checkpoint,
    tokens: NDArray[np.int64],
    finish: Callable[[int, Tensor], None],
    settings: Settings,
    report: Callable[[float, int], None],
    *,
    alter: Callable[[int, Tensor], Tensor] | None = None,
    last: int | None = None,
) -> LockstepForward:
    """Run a checkpoint over chunks of tokens; the model that was run.

    Args:
        checkpoint: with its tensors as they are stored.
        tokens: shape (chunks, context).
        finish: as for `run`.
        settings: the device, and above how many bytes activations go to a temporary file.
        report: told the layers that are done, with fractions, of how many.
        alter: as for `run`.
        last: as for `run`.

    Raises:
        CalibrationError: transformers has no such model, or it cannot be run over these tokens.
        CheckpointError: a weight cannot be read, or a file of them changed meanwhile.
        NoSpaceError: the activations do not fit on the disk of temporary files.

    """
    source = identify_source(checkpoint)
    forward = LockstepForward(checkpoint, find_device(settings.device))
    forward.require_context(tokens.shape[1])
    with tempfile.TemporaryDirectory(prefix="quantkit-") as temporary:
        folder = Path(temporary)
        room = Room.of(forward, tokens.shape, settings.max_memory, is_durable=False)
        check_space(folder, room.n_bytes)
        states = States(folder, len(tokens), forward.device, spill=room.spills, durable=False)

        def finish_layer(_layer: int, _routing: Routing | None) -> None:
            states.turn_over()

        run(
            forward,
            tokens,
            states,
            finish,
            Visitors(alter=alter),
            finish_layer=finish_layer,
            report=lambda done: report(done, len(forward.layers)),
            last=last,
        )
    require_unchanged(checkpoint, source)
    return forward
