"""An importance matrix of a checkpoint and text, layer by layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.building.output import PARTIAL, working_folder
from quantkit.calibration.journaled import Run
from quantkit.calibration.lockstep.gguf_names import Inputs
from quantkit.calibration.lockstep.squares import Squares
from quantkit.calibration.lockstep.visitors import Visitors
from quantkit.calibration.routing import Routing
from quantkit.calibration.settings import Settings, Step, digest, identify
from quantkit.calibration.statistics import Sums
from quantkit.calibration.sums import read_sums, write_sums
from quantkit.calibration.text import Corpus
from quantkit.checkpoint.checkpoint import Checkpoint, stored_view
from quantkit.checkpoint.gathered import add_earlier
from quantkit.checkpoint.imatrix_file import MADE_FROM, read_note, write_imatrix
from quantkit.core.errors import OutputError
from quantkit.families.model import Model


@dataclass(frozen=True, slots=True)
class Calibration:
    """A finished importance matrix, and what the run saw."""

    path: Path
    chunks: int
    total: int
    """Chunks, those of earlier matrices included."""
    context: int
    text: tuple[str, ...]
    perplexity: float
    routing: Mapping[int, Routing]
    """By the numbers of layers that have experts."""
    resumed: int
    """Layers that an earlier, interrupted run had done."""


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
    """Run a model over text and write what its matrices saw as an importance matrix.

    Beside ``out`` grows a folder ``NAME.partial``, from which a killed run resumes at the layer it
    was in; the result is the same.

    Args:
        checkpoint: where weights come from; one layer's are read at a time.
        model: the checkpoint's, by a family of ours or by llama.cpp's converter.
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
    settings = _lending(checkpoint, settings)
    identity = _identify_matrix(checkpoint, corpus, settings)
    run = Run(checkpoint, corpus, settings, out.with_name(out.name + PARTIAL), identity)
    squares = Squares(run.forward.n_matrices)

    def file_of(layer: int) -> Path:
        return run.folder / f"layer-{layer}.safetensors"

    def finish_layer(layer: int) -> dict[str, int]:
        path = file_of(layer)
        return {path.name: write_sums(path, squares.take())}

    with working_folder(run.folder, run.n_bytes):
        visitors = Visitors(watcher=squares, fewest_tokens=settings.fewest_tokens)
        run.execute(visitors, finish_layer, report, say, scores=True)
        run.require_unchanged()
        found: dict[str, Sums] = {}
        for layer, crcs in enumerate(run.records):
            path = file_of(layer)
            found |= read_sums(path, crcs.get(path.name))
        entries, without = Inputs(checkpoint, run.forward).entries(model, found)
        if without:
            say(
                f"{len(without)} tensors have no entry, {without[0]} first: nothing in the model "
                "shows what llama.cpp multiplies them by."
            )
        total = _write_matrix(entries, corpus, identity, run.folder, out, earlier)
    return Calibration(
        out,
        corpus.chunks,
        total,
        corpus.context,
        corpus.names,
        float(np.exp(run.losses.mean())),
        run.routing,
        run.resumed,
    )


def _write_matrix(
    entries: Mapping[str, Sums],
    corpus: Corpus,
    identity: Mapping[str, Any],
    folder: Path,
    out: Path,
    earlier: Sequence[Path],
) -> int:
    """Write what a run gathered; the chunks that are in it, those of ``earlier`` files included.

    It gets its name last; until then it lies in ``folder``.

    Raises:
        ImatrixError: an earlier file is of another model.

    """
    unfinished = folder / "imatrix.gguf"
    notes = {MADE_FROM: digest(identity)}
    write_imatrix(unfinished, entries, corpus.names, corpus.chunks, corpus.context, notes)
    total = corpus.chunks
    if earlier:
        total = add_earlier(unfinished, earlier, corpus.context)
    unfinished.replace(out)
    return total


def is_made_from(file: Path, checkpoint: Checkpoint, corpus: Corpus, settings: Settings) -> bool:
    """Whether a file is the importance matrix that these would give."""
    identity = _identify_matrix(checkpoint, corpus, _lending(checkpoint, settings))
    return file.is_file() and read_note(file, MADE_FROM) == digest(identity)


def look_ahead(checkpoint: Checkpoint, corpus: Corpus, settings: Settings) -> int:
    """The bytes of disk that a run needs for activations. Reads no weights, writes nothing.

    Raises:
        CalibrationError, CheckpointError: the model cannot be run over this text.

    """
    return Run(checkpoint, corpus, settings, Path(), {}).n_bytes


def _lending(checkpoint: Checkpoint, settings: Settings) -> Settings:
    """The settings, without borrowed tokens for a model of no family of ours."""
    return settings if checkpoint.description is None else replace(settings, fewest_tokens=0)


def _identify_matrix(checkpoint: Checkpoint, corpus: Corpus, settings: Settings) -> dict[str, Any]:
    """Everything that a file depends on: it names the text, too."""
    return {**identify(stored_view(checkpoint), corpus, settings), "text": corpus.names}
