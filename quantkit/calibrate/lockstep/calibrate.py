"""An importance matrix of a checkpoint of any architecture that llama.cpp and transformers know."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantkit.build.output import PARTIAL, check_space, working_folder
from quantkit.build.source import require_unchanged
from quantkit.calibrate.calibrate import (
    Calibration,
    Settings,
    Step,
    digest,
    find_device,
    identify,
    write_matrix,
)
from quantkit.calibrate.forward import losses_of, scored_from
from quantkit.calibrate.lockstep.forward import LockstepForward
from quantkit.calibrate.lockstep.gguf_names import Inputs
from quantkit.calibrate.lockstep.run import run
from quantkit.calibrate.lockstep.squares import Squares
from quantkit.calibrate.lockstep.states import States, spilled_bytes
from quantkit.calibrate.progress import Journal, Layer
from quantkit.calibrate.routing import Routing
from quantkit.calibrate.statistics import Sums
from quantkit.calibrate.sums import read_sums, write_sums
from quantkit.calibrate.text import Corpus
from quantkit.checkpoint.checkpoint import Checkpoint, stored_view
from quantkit.checkpoint.imatrix_file import MADE_FROM, read_note
from quantkit.core.errors import Interrupted, OutputError
from quantkit.families.model import Model

_KEPT = 2  # files of states


def calibrate(
    checkpoint: Checkpoint,
    model: Model,
    corpus: Corpus,
    out: Path,
    settings: Settings,
    report: Callable[[Step], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    earlier: Sequence[Path] = (),
) -> Calibration:
    """Run a model over text and write what its matrices saw, by their names in the GGUF.

    Beside ``out`` grows a folder ``NAME.partial``, from which a killed run resumes at the layer it
    was in; the result is the same. No expert borrows tokens.

    Args:
        checkpoint: as llama.cpp's converter describes it.
        model: what the converter says of it.
        corpus: the text.
        out: the file to write.
        settings: how to run.
        report: called with the progress.
        say: told what of an interrupted run is lost, and which tensors have no entry.
        earlier: importance matrices of the model whose sums are added.

    Raises:
        CalibrationError: the model cannot be run over this text.
        CheckpointError: a weight cannot be read, or a file of them changed meanwhile.
        OutputError: the result cannot be written.
        Interrupted: Ctrl-C; what was done is kept.

    """
    if out.is_dir():
        raise OutputError(f"{out} is a folder; name the file to write with -o.")
    stored = stored_view(checkpoint)
    identity = _identify(stored, corpus, settings)
    forward = stand_ready(stored, corpus.context, settings)
    folder = out.with_name(out.name + PARTIAL)
    n_bytes, spills = _disk_bytes(forward, corpus, settings)
    losses: list[NDArray[np.float64]] = [np.empty(0)] * corpus.chunks

    def finish(number: int, logits: Tensor) -> None:
        losses[number] = losses_of(logits, corpus.tokens[number])

    with working_folder(folder, n_bytes):
        journal = Journal(folder, identity, len(forward.layers))
        journal.start(say)
        check_space(folder, n_bytes)
        states = States(folder, corpus.chunks, forward.device, spill=spills, durable=True)
        resumed = len(journal.layers)
        if resumed:
            states.resume(resumed, journal.layers[-1].states)
        squares = Squares(forward.n_matrices)
        tell = _teller(report, resumed, len(forward.layers), corpus.tokens.size)

        def finish_layer(layer: int) -> None:
            sums = squares.take()
            path = folder / f"layer-{layer}.safetensors"
            crcs = {path.name: write_sums(path, sums)}
            journal.record(Layer(states.commit(), crcs, _routing(forward, sums)))
            states.turn_over()
            tell(layer + 1)

        try:
            run(
                forward,
                corpus.tokens,
                states,
                finish,
                watcher=squares,
                finish_layer=finish_layer,
                resumed=resumed,
                last=corpus.context - scored_from(corpus.context),
            )
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped with {len(journal.layers)} of {len(forward.layers)} layers done; run the "
                "same command to go on from there."
            ) from None
        require_unchanged(stored, identity["source"])
        found: dict[str, Sums] = {}
        for layer, record in enumerate(journal.layers):
            path = folder / f"layer-{layer}.safetensors"
            found |= read_sums(path, record.crcs.get(path.name))
        entries, without = Inputs(checkpoint, forward).entries(model, found)
        if without:
            say(
                f"{len(without)} tensors have no entry, {without[0]} first: nothing in the model "
                "shows what llama.cpp multiplies them by."
            )
        total = write_matrix(entries, corpus, identity, folder, out, earlier)
    routing = {n: layer.routing for n, layer in enumerate(journal.layers) if layer.routing}
    perplexity = float(np.exp(np.concatenate(losses).mean()))
    return Calibration(
        out, corpus.chunks, total, corpus.context, corpus.names, perplexity, routing, resumed
    )


def is_made_from(file: Path, checkpoint: Checkpoint, corpus: Corpus, settings: Settings) -> bool:
    """Whether a file is the importance matrix that these would give."""
    identity = _identify(stored_view(checkpoint), corpus, settings)
    return file.is_file() and read_note(file, MADE_FROM) == digest(identity)


def look_ahead(checkpoint: Checkpoint, corpus: Corpus, settings: Settings) -> int:
    """The bytes of disk that a run needs for activations. Reads no weights, writes nothing.

    Raises:
        CalibrationError, CheckpointError: as `stand_ready` does.

    """
    forward = stand_ready(stored_view(checkpoint), corpus.context, settings)
    return _disk_bytes(forward, corpus, settings)[0]


def _disk_bytes(forward: LockstepForward, corpus: Corpus, settings: Settings) -> tuple[int, bool]:
    """The bytes of states on the disk, and whether the run works on them there."""
    spilled = spilled_bytes(forward, corpus.tokens.shape, settings.max_memory)
    return spilled or _KEPT * forward.state_bytes(corpus.tokens.shape), spilled > 0


def _identify(stored: Checkpoint, corpus: Corpus, settings: Settings) -> dict[str, Any]:
    """Everything that a matrix depends on; no expert borrows tokens."""
    import transformers

    return {
        **identify(stored, corpus, replace(settings, fewest_tokens=0)),
        "text": corpus.names,
        "transformers": transformers.__version__,
    }


def stand_ready(stored: Checkpoint, context: int, settings: Settings) -> LockstepForward:
    """What is to be run; refuses a checkpoint that cannot be, before the converter is asked.

    Raises:
        CalibrationError, CheckpointError: as `LockstepForward` does.

    """
    forward = LockstepForward(stored, find_device(settings.device))
    forward.require_context(context)
    return forward


def _teller(
    report: Callable[[Step], None], resumed: int, layers: int, tokens: int
) -> Callable[[int], None]:
    started = time.monotonic()

    def tell(done: int) -> None:
        seconds = time.monotonic() - started
        seen = (done - resumed) / layers * tokens
        report(Step(done, layers, seen / seconds if seconds else 0.0))

    tell(resumed)
    return tell


def _routing(forward: LockstepForward, sums: Mapping[str, Sums]) -> Routing | None:
    """Where the tokens of a layer went, if it has experts that are seen one by one."""
    routed = {f"{name}.{some.routed}" for name, some in forward.experts.items()}
    for name, seen in sums.items():
        if name in routed:
            tokens = tuple(int(count) for count in seen.counts)
            return Routing(tokens, (0,) * len(tokens))
    return None
