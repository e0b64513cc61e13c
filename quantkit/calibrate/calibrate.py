"""An importance matrix from a checkpoint and text, layer by layer."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import quantkit
from quantkit.build.output import PARTIAL, check_space, working_folder
from quantkit.build.source import identify_source, require_unchanged
from quantkit.calibrate.activations import Activations
from quantkit.calibrate.forward import Forward, Visitor
from quantkit.calibrate.progress import Journal, Layer
from quantkit.calibrate.routing import Routing
from quantkit.calibrate.statistics import SquareSums, Sums
from quantkit.calibrate.sums import read_sums, write_sums
from quantkit.calibrate.text import Corpus
from quantkit.calibrate.weights import Weights
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.gathered import add_earlier
from quantkit.checkpoint.imatrix_file import MADE_FROM, read_note, write_imatrix
from quantkit.core.errors import CalibrationError, Interrupted, OutputError
from quantkit.families.model import Decoder

FEWEST_TOKENS = 256
_SPILLED_ARRAYS, _KEPT_ARRAYS = 3, 2
# Raise it whenever the same weights and text give other statistics, layers or merges: what was made
# or begun before then serves no more.
_ALGORITHM = 1
# What config.json says that computes nothing. All else counts, whether quantkit knows it or not.
_COMPUTES_NOTHING = {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run a model over text.

    ``fewest_tokens``: experts with fewer are shown others' tokens; 0 for none. ``max_memory``:
    bytes of activations that are kept in memory, above which they go to disk.
    """

    device: str = "cpu"
    fewest_tokens: int = FEWEST_TOKENS
    max_memory: int = 4 * 2**30


@dataclass(frozen=True, slots=True)
class Step:
    """How far a run is: layers done of so many, with fractions, and tokens per second."""

    layers: float
    n_layers: int
    tokens_per_second: float


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
    model: Decoder,
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
        model: the checkpoint's.
        corpus: the text.
        out: the file to write.
        settings: how to run.
        report: called with the progress.
        say: told what of an interrupted run is lost.
        earlier: importance matrices of the model whose sums are added.

    Raises:
        CalibrationError: the model cannot be run over this text.
        CheckpointError: a weight cannot be read, or a file of them changed meanwhile.
        OutputError: the result cannot be written.
        Interrupted: Ctrl-C; what was done is kept.

    """
    if out.is_dir():
        raise OutputError(f"{out} is a folder; name the file to write with -o.")
    identity = _identify_matrix(checkpoint, corpus, settings)
    run = Run(checkpoint, model, corpus, settings, out.with_name(out.name + PARTIAL), identity)
    visitor = SquareSums(model.hparams.num_local_experts)

    def finish_layer(layer: int) -> dict[str, int]:
        path = run.sums_of(layer)
        return {path.name: write_sums(path, visitor.take())}

    with working_folder(run.folder, run.n_bytes):
        run.execute(visitor, finish_layer, report, say)
        perplexity = run.forward.perplexity(run.states, corpus.tokens)
        run.require_unchanged()
        entries = _gather(run)
        total = write_matrix(entries, corpus, identity, run.folder, out, earlier)
    routing = dict(enumerate(run.routing))
    return Calibration(
        out,
        corpus.chunks,
        total,
        corpus.context,
        corpus.names,
        perplexity,
        routing,
        run.resumed,
    )


def write_matrix(
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
    return file.is_file() and read_note(file, MADE_FROM) == digest(
        _identify_matrix(checkpoint, corpus, settings)
    )


def _identify_matrix(checkpoint: Checkpoint, corpus: Corpus, settings: Settings) -> dict[str, Any]:
    """Everything that a file depends on: it names the text, too."""
    return {**identify(checkpoint, corpus, settings), "text": corpus.names}


def look_ahead(checkpoint: Checkpoint, model: Decoder, corpus: Corpus, settings: Settings) -> int:
    """The bytes of disk that a run needs for activations. Reads no weights, writes nothing.

    Raises:
        CalibrationError: the model cannot be run over this text, or not on this device.

    """
    return Run(checkpoint, model, corpus, settings, Path(), {}).n_bytes


def identify(checkpoint: Checkpoint, corpus: Corpus, settings: Settings) -> dict[str, Any]:
    """Everything that the result of a run depends on, down to rounding.

    Which threads, processor and version of PyTorch round the last bits is left out: a matrix that
    was made on another machine serves.
    """
    config = {k: v for k, v in checkpoint.config.items() if k not in _COMPUTES_NOTHING}
    return {
        "quantkit": quantkit.__version__,
        "algorithm": _ALGORITHM,
        "source": identify_source(checkpoint),
        "config": config,
        "tokens": hashlib.sha256(corpus.tokens.tobytes()).hexdigest(),
        "shape": corpus.tokens.shape,
        "fewest_tokens": settings.fewest_tokens,
        "device": settings.device,
    }


def digest(identity: Mapping[str, Any]) -> str:
    """A short name for an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def find_device(name: str) -> torch.device:
    """The device called ``cpu`` or ``cuda``.

    Raises:
        CalibrationError: there is no such device here.

    """
    if name == "cuda" and not torch.cuda.is_available():
        raise CalibrationError(
            "--device cuda finds no GPU that this PyTorch can use; use --device cpu, or install "
            "a PyTorch with CUDA."
        )
    return torch.device(name)


class Run:
    """One pass over all layers, begun or resumed."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Decoder,
        corpus: Corpus,
        settings: Settings,
        folder: Path,
        identity: Mapping[str, Any],
        *,
        more_arrays: int = 0,
        more_bytes: int = 0,
    ) -> None:
        """Prepare a run; no weights are read.

        Args:
            checkpoint: whose weights.
            model: the checkpoint's.
            corpus: the text.
            settings: how to run.
            folder: for what must survive a kill.
            identity: what tells this run from others.
            more_arrays: of activations that the visitor or merger keeps beside the usual ones.
            more_bytes: of disk that ``finish_layer`` and the like write in all.

        """
        self.folder = folder
        self._checkpoint = checkpoint
        self.model = model
        self.corpus = corpus
        self._identity = identity
        self.weights = Weights(checkpoint, model, find_device(settings.device))
        self.forward = Forward(
            self.weights,
            corpus.context,
            fewest_tokens=settings.fewest_tokens,
        )
        self._shape = (corpus.chunks, corpus.context, model.hparams.hidden_size)
        one = int(np.prod(self._shape)) * 4
        self._spills = (_KEPT_ARRAYS + more_arrays) * one > settings.max_memory
        arrays = _SPILLED_ARRAYS + more_arrays if self._spills else _KEPT_ARRAYS
        self.n_bytes = arrays * one + more_bytes
        self.states: Activations
        self.routing: tuple[Routing, ...] = ()
        self.records: tuple[Mapping[str, int], ...] = ()
        self.resumed = 0

    def execute(
        self,
        visitor: Visitor,
        finish_layer: Callable[[int], Mapping[str, int]],
        report: Callable[[Step], None],
        say: Callable[[str], None],
    ) -> None:
        """Run every layer that no earlier run finished, in a folder that is held.

        ``finish_layer`` writes what the visitor has of a layer; then the layer counts as done, and
        what it returned, CRC-32s by name, is kept in ``records``. What is lost of another run is
        said before.

        Raises:
            CheckpointError: a weight cannot be read.
            NoSpaceError: the activations do not fit on the disk.
            Interrupted: Ctrl-C; what was done is kept.

        """
        n_layers = self.model.hparams.num_hidden_layers
        journal = Journal(self.folder, self._identity, n_layers)
        journal.start(say)
        check_space(self.folder, self.n_bytes)
        self.states = Activations(self.folder, self._shape, spill=self._spills)
        self.resumed = len(journal.layers)
        if self.resumed:
            self.states.resume(self.resumed, journal.layers[-1].states)
        else:
            self.states.start(self.weights.embed(self.corpus.tokens))
        started = time.monotonic()

        def tell(layers: int, part: float = 0.0) -> None:
            seconds = time.monotonic() - started
            done = layers + part
            tokens = (done - self.resumed) / n_layers * self.corpus.tokens.size
            report(Step(done, n_layers, tokens / seconds if seconds else 0.0))

        tell(self.resumed)
        try:
            for layer in range(self.resumed, n_layers):
                routing = self.forward.advance(
                    layer,
                    self.states,
                    visitor,
                    partial(tell, layer),
                )
                crcs = finish_layer(layer)
                journal.record(Layer(self.states.commit(), dict(crcs), routing))
                self.states.turn_over()
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped with {len(journal.layers)} of {n_layers} layers done; run the same "
                "command to go on from there."
            ) from None
        self.records = tuple(layer.crcs for layer in journal.layers)
        self.routing = tuple(layer.routing for layer in journal.layers if layer.routing)

    def sums_of(self, layer: int) -> Path:
        """The file of what a layer's matrices saw."""
        return self.folder / f"layer-{layer}.safetensors"

    def require_unchanged(self) -> None:
        """Refuse the result if the weights are not those any more that the run began with.

        Raises:
            CheckpointError: a file of them is another now, or gone.

        """
        require_unchanged(self._checkpoint, self._identity["source"])


def _gather(run: Run) -> dict[str, Sums]:
    """The sums of all layers by the tensors' names.

    Raises:
        OutputError: a file of them, of an earlier run perhaps, is not as it was written.

    """
    entries = {}
    for layer, crcs in enumerate(run.records):
        path = run.sums_of(layer)
        for role, sums in read_sums(path, crcs.get(path.name)).items():
            entries[run.weights.target(layer, role).name] = sums
    return entries
