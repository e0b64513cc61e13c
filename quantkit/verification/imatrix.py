"""An importance matrix from a GGUF alone: llama.cpp runs it, whatever its architecture."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.building.output import PARTIAL, check_space, working_folder
from quantkit.building.source import identify_source
from quantkit.calibration.routing import Routing
from quantkit.calibration.sources import Piece, TextSource
from quantkit.calibration.text import CHARACTERS, read_sources
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.gathered import add_earlier
from quantkit.checkpoint.imatrix_file import MADE_FROM, read_note
from quantkit.core.errors import CalibrationError, Interrupted, OutputError
from quantkit.core.writing import write_file
from quantkit.verification.llama import run_worker
from quantkit.verification.machine import usable_cores
from quantkit.verification.smoke import time_limit

SAVE_SECONDS = 60.0
_SECONDS_PER_CHUNK = 60
_BYTES_PER_SECOND = 5e7  # of a model, per chunk, on a slow disk and a busy machine
# Raise it whenever the same model and text give another matrix.
_ALGORITHM = 1
_EXPERTS = re.compile(r"blk\.([0-9]+)\.ffn_\w+_exps\.weight")
_UNFINISHED = "unfinished.gguf"


@dataclass(frozen=True, slots=True)
class GatherOptions:
    """What to run a GGUF over, and how.

    ``sources`` are texts, the built-in one if there are none; ``chunks`` the most sequences of
    ``context`` tokens; ``gpu_layers`` how many layers a GPU takes.
    """

    sources: Sequence[TextSource] = ()
    chunks: int = 128
    context: int = 512
    threads: int | None = None
    gpu_layers: int = 0


@dataclass(frozen=True, slots=True)
class GatherStep:
    """How far a run is: chunks done of so many, and tokens per second."""

    chunks: int
    of: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Gathered:
    """A finished importance matrix, and what the run saw.

    ``total`` counts the chunks of earlier matrices, too. ``perplexity`` is None where the model
    predicts nothing. ``resumed`` chunks were an earlier run's. ``trained`` is the longest context
    that the model was trained for. ``n_different`` tokens of its ``vocabulary`` were seen.
    ``routing`` is by the numbers of layers that have experts.
    """

    path: Path
    chunks: int
    total: int
    context: int
    text: tuple[str, ...]
    perplexity: float | None
    resumed: int
    trained: int
    n_different: int
    vocabulary: int
    routing: Mapping[int, Routing]


def gather(
    source: Checkpoint,
    wish: GatherOptions,
    out: Path,
    report: Callable[[GatherStep], None] = lambda _: None,
    earlier: Sequence[Path] = (),
) -> Gathered:
    """Run a GGUF over text in llama.cpp, and write what its matrices saw as an importance matrix.

    Beside ``out`` lies a folder ``NAME.partial`` meanwhile, from which a run that was killed goes
    on; the result is the same.

    Args:
        source: a GGUF on this machine, quantized or not.
        wish: over what.
        out: the file to write.
        report: called with the progress.
        earlier: importance matrices of the model whose sums are added.

    Raises:
        CalibrationError: llama.cpp does not run it over this text.
        NativeError: llama.cpp is not installed, or does not run on this machine.
        OutputError: the result cannot be written.
        Interrupted: Ctrl-C; what was done is kept.

    """
    if out.is_dir():
        raise OutputError(f"{out} is a folder; name the file to write with -o.")
    pieces, names = _text_of(source, wish)
    folder = out.with_name(out.name + PARTIAL)
    needed = look_ahead(source)
    with working_folder(folder, needed):
        check_space(folder, needed)
        write_file(folder / "text.json", json.dumps(pieces).encode())
        request = {
            "task": "importance",
            "file": str(source.path.absolute()),
            "text": str(folder.absolute() / "text.json"),
            "names": names,
            "out": str(folder.absolute() / "imatrix.gguf"),
            "unfinished": str(folder.absolute() / _UNFINISHED),
            "identity": identify(source, wish, pieces, names),
            "chunks": wish.chunks,
            "context": wish.context,
            "threads": wish.threads or usable_cores(),
            "gpu_layers": wish.gpu_layers,
            "save_seconds": SAVE_SECONDS,
        }
        try:
            result = _run(request, source, wish, report)
        except CalibrationError:
            if not (folder / _UNFINISHED).exists():
                shutil.rmtree(folder)
            raise
        made = folder / "imatrix.gguf"
        total = add_earlier(made, earlier, wish.context) if earlier else result["chunks"]
        made.replace(out)
    counts = result.pop("routing")
    routing = _routing_of(counts)
    result["total"] = total
    return Gathered(path=out, context=wish.context, text=names, routing=routing, **result)


def _routing_of(counts: Mapping[str, Sequence[float]]) -> dict[int, Routing]:
    """Where tokens went, by layer; all tensors of a layer's experts saw the same."""
    found = {}
    for name, tokens in counts.items():
        if match := _EXPERTS.match(name):
            found[int(match[1])] = Routing(tuple(map(int, tokens)), (0,) * len(tokens))
    return dict(sorted(found.items()))


def _run(
    request: Mapping[str, Any],
    source: Checkpoint,
    wish: GatherOptions,
    report: Callable[[GatherStep], None],
) -> dict[str, Any]:
    def tell(message: dict[str, Any]) -> None:
        if "of" in message:
            done, seconds = message["done"], message["seconds"]
            tokens = (done - message["resumed"]) * wish.context
            report(GatherStep(done, message["of"], tokens / seconds if seconds else 0.0))

    n_bytes = sum(file.stat().st_size for file in source.files)
    seconds = wish.chunks * (_SECONDS_PER_CHUNK + n_bytes / _BYTES_PER_SECOND)
    try:
        run = run_worker(
            request, timeout=time_limit(n_bytes) + seconds, gpu=wish.gpu_layers > 0, tell=tell
        )
    except KeyboardInterrupt:
        raise Interrupted(
            "Stopped; run the same command to go on from what was saved last, a minute ago at most."
        ) from None
    if run.failure or run.result is None:
        raise CalibrationError(f"{source.path} cannot be calibrated: {run.failure}")
    if "refused" in run.result:
        raise CalibrationError(f"{source.path} cannot be calibrated: {run.result['refused']}")
    return run.result


def _text_of(source: Checkpoint, wish: GatherOptions) -> tuple[list[Piece], tuple[str, ...]]:
    return read_sources(source, wish.sources, wish.chunks * wish.context * CHARACTERS)


def identify(
    source: Checkpoint, wish: GatherOptions, pieces: Sequence[Piece], names: Sequence[str]
) -> str:
    """A short name for everything that a matrix depends on, but the last bits' rounding."""
    text = pieces[0].text if len(pieces) == 1 else json.dumps(pieces)
    known = {
        "algorithm": _ALGORITHM,
        "source": identify_source(source),
        "text": [hashlib.sha256(text.encode()).hexdigest(), *names],
        "chunks": wish.chunks,
        "context": wish.context,
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def is_made_from(file: Path, source: Checkpoint, wish: GatherOptions) -> bool:
    """Whether a file is the importance matrix that these would give."""
    if not file.is_file():
        return False
    return read_note(file, MADE_FROM) == identify(source, wish, *_text_of(source, wish))


def look_ahead(source: Checkpoint) -> int:
    """The bytes of disk that a run needs at most: the matrix, and another that is unfinished.

    A matrix has four bytes for each column of each two-dimensional part of a tensor.
    """
    columns = sum(
        tensor.shape[-1] * (tensor.shape[0] if len(tensor.shape) == 3 else 1)
        for tensor in source.tensors.values()
        if len(tensor.shape) > 1
    )
    return 2 * 4 * columns + 2**22
