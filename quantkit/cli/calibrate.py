"""``quantkit calibrate``: an importance matrix, and where the router sends tokens."""

from enum import StrEnum
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from quantkit.cli.gguf_matrix import (
    experts_in,
    gather_from_gguf,
    gguf_wish,
    open_gguf_here,
    remarks_on_coverage,
)
from quantkit.cli.joined import require_continuable
from quantkit.cli.needs import CALIBRATE, CalibrateWish, refuse_idle
from quantkit.cli.output import (
    GpuLayersOption,
    JsonOption,
    console,
    emit_json,
    escape,
    note,
    open_meter,
    show_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from quantkit.calibration.calibrate import Calibration
    from quantkit.calibration.routing import Routing
    from quantkit.calibration.settings import Settings, Step
    from quantkit.calibration.text import Corpus
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.families.model import Decoder, Model
    from quantkit.verification.imatrix import Gathered

_STARVED_SHARE = 0.25  # of an even share, below which an expert counts as starved


class Device(StrEnum):
    """Where a model is run."""

    CPU = "cpu"
    CUDA = "cuda"


TextOption = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        "-t",
        metavar="FILE[:WEIGHT]",
        help="Text to run over; repeat for more  [default: built in]",
    ),
]
ChatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--chat",
        metavar="FILE.jsonl[:WEIGHT]",
        help="Conversations to run over, by the model's own chat template.",
    ),
]
ChunksOption = Annotated[int, typer.Option(min=1, help="The most sequences of text.")]
ContextOption = Annotated[int, typer.Option(min=16, help="Tokens per sequence.")]
DeviceOption = Annotated[Device, typer.Option(help="Where the model is run.")]


def calibrate(
    command: typer.Context,
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A checkpoint: a folder or HUB_ID[@REVISION]; or a GGUF."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path(
        "imatrix.gguf"
    ),
    text: TextOption = None,
    chat: ChatOption = None,
    chunks: ChunksOption = 128,
    context: ContextOption = 512,
    device: DeviceOption = Device.CPU,
    gpu_layers: GpuLayersOption = 0,
    min_tokens: Annotated[
        int, typer.Option(min=0, help="Experts with fewer tokens borrow some; 0 for never.")
    ] = 256,
    max_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="The most memory for activations; more go to disk.")
    ] = "4GiB",
    random_tokens: Annotated[
        bool, typer.Option("--random-tokens", help="No text: noise, for measuring speed.")
    ] = False,
    earlier: Annotated[
        list[Path] | None,
        typer.Option("--continue", metavar="FILE", help="Add to this matrix."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw where the tokens of a MoE went.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there already.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a model over text and write an importance matrix.

    A checkpoint is run by PyTorch, one decoder layer at a time, in the memory of a layer. A GGUF is
    run by llama.cpp, whatever its architecture. Stopped or killed, the same command goes on.
    """
    from quantkit.checkpoint.open import is_gguf_file, open_model
    from quantkit.core.packages import require

    is_gguf = is_gguf_file(Path(checkpoint))
    refuse_idle(command, CALIBRATE, CalibrateWish(random_tokens, is_gguf))
    if not is_gguf:
        require_running("calibrate", "Calibrating a checkpoint")
    if plot is not None:
        require("matplotlib", "matplotlib", "plot", "--plot")
    from quantkit.calibration.plot import require_drawable
    from quantkit.calibration.sources import parse_sources
    from quantkit.core.errors import OutputError

    sources = parse_sources(text, chat)
    _require_file(out, overwrite=overwrite)
    if plot is not None and plot.resolve() == out.resolve():
        raise OutputError(f"{out} cannot be the matrix and --plot's picture; name two files.")
    if is_gguf:
        wish = gguf_wish(sources, chunks, context, gpu_layers=gpu_layers)
        gguf = open_gguf_here(Path(checkpoint))
        assert gguf.header is not None  # noqa: S101 - it is a GGUF
        experts = experts_in(gguf.header)
        refuse_idle(command, CALIBRATE, CalibrateWish(random_tokens, is_gguf, experts=experts))
        if plot is not None:
            require_drawable(plot)
        require_continuable(earlier or (), open_model(gguf).targets)
        gathered = gather_from_gguf(gguf, wish, out, earlier or ())
        _finish(gathered, gathered.routing, "chunks", plot, 0, as_json)
        return
    from quantkit.building.output import check_space
    from quantkit.calibration.calibrate import look_ahead
    from quantkit.calibration.lockstep.forward import stand_ready
    from quantkit.calibration.settings import Settings
    from quantkit.calibration.text import make_corpus, random_corpus
    from quantkit.checkpoint.open import open_stored_by_name
    from quantkit.core.units import parse_size

    settings = Settings(device.value, min_tokens, parse_size(max_memory))
    stored = open_stored_by_name(checkpoint)
    known, model, experts = _open(
        stored, lambda: stand_ready(stored, context, settings), command, random_tokens
    )
    if plot is not None:
        require_drawable(plot)
    require_continuable(earlier or (), model.targets)
    if random_tokens:
        corpus = random_corpus(_vocabulary(model), chunks, context)
    else:
        corpus = make_corpus(known, sources, chunks, context)
    check_space(out.absolute().parent, look_ahead(known, corpus, settings))
    remarks = remarks_on(corpus, chunks)
    result = run(known, model, corpus, out, settings, remarks, earlier or ())
    lends = known.description is None and experts
    _finish(result, result.routing, "layers", plot, min_tokens if lends else 0, as_json)


def require_running(extra: str, purpose: str) -> None:
    """Refuse to run a checkpoint without PyTorch and transformers.

    Raises:
        MissingPackageError: one of them is not installed.

    """
    from quantkit.core.packages import require

    require("torch", "PyTorch", extra, purpose)
    require("transformers", "transformers", extra, purpose)


def _open(
    stored: "Checkpoint",
    stand_ready: "Callable[[], object]",
    command: typer.Context,
    random_tokens: bool,
) -> "tuple[Checkpoint, Model, int]":
    """A checkpoint, the model that it makes, and how many experts that has.

    One of a family of ours is described by that, any other by llama.cpp's converter, which is not
    asked before it is known that the model can be run.

    Raises:
        PlanError: an option would do nothing for such a model.
        CalibrationError, CheckpointError, ConverterError: it cannot be run, or not described.

    """
    from quantkit.checkpoint.converter.wish import ConverterOptions
    from quantkit.checkpoint.folder import is_foreign
    from quantkit.checkpoint.open import described, open_model

    if not is_foreign(stored):
        known, model = open_noted(
            stored,
            "build a bf16 GGUF of it and make the importance matrix with llama-imatrix, for "
            "--imatrix",
        )
        experts = model.hparams.num_local_experts
        refuse_idle(command, CALIBRATE, CalibrateWish(random_tokens, experts=experts))
        stand_ready()
        return known, model, experts
    refuse_idle(command, CALIBRATE, CalibrateWish(random_tokens, lends=False))
    stand_ready()
    checkpoint = described(stored, ConverterOptions())
    assert checkpoint.description is not None  # noqa: S101 - it is foreign
    experts = experts_in(checkpoint.description.header)
    wish = CalibrateWish(random_tokens, lends=False, experts=experts)
    refuse_idle(command, CALIBRATE, wish)
    for remark in checkpoint.remarks:
        note(remark)
    return checkpoint, open_model(checkpoint), experts


def _vocabulary(model: "Model") -> int:
    (table,) = (target for target in model.targets if target.name == "token_embd.weight")
    return table.shape[0]


def _require_file(out: Path, *, overwrite: bool) -> None:
    """Refuse a place where no file can be written, or where one lies that may not be replaced."""
    from quantkit.checkpoint.imatrix import load_imatrix
    from quantkit.core.errors import ImatrixError, OutputError

    require_writable(out, overwrite=overwrite)
    if out.is_file():
        try:
            load_imatrix(out)
        except ImatrixError:
            raise OutputError(
                f"{out} is no importance matrix, and --overwrite replaces nothing else; name "
                "another file with -o."
            ) from None


def require_writable(out: Path, *, overwrite: bool) -> None:
    """Refuse a file's place where none can be written, or where one lies, unless ``overwrite``.

    Raises:
        OutputError: so it is.

    """
    from quantkit.building.output import require_place
    from quantkit.core.errors import OutputError

    require_place(out.absolute().parent)
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise OutputError(f"{out} is a device and no file; name another with -o.")
    if out.exists() and not out.is_dir() and not overwrite:
        raise OutputError(
            f"{out} is there already; --overwrite replaces it, or name another file with -o."
        )


def open_noted(source: "Path | Checkpoint", fix: str) -> "tuple[Checkpoint, Decoder]":
    """A checkpoint that holds what its config promises, and the model that it makes.

    ``fix`` says what to do with a model whose layers quantkit does not compute.
    """
    from quantkit.checkpoint.open import require_layers

    checkpoint, model = require_layers(source, fix)
    for remark in checkpoint.remarks:
        note(remark)
    return checkpoint, model


def remarks_on(corpus: "Corpus", asked: int) -> list[str]:
    """What to say of text that nobody chose, or of which there is less than was asked for."""
    from quantkit.calibration.text import BUILT_IN, ON_BUILT_IN, RANDOM

    remarks = []
    if corpus.names == (BUILT_IN,):
        remarks.append(ON_BUILT_IN)
    if corpus.names == (RANDOM,):
        remarks.append("Calibrating on random tokens: noise only serves to measure speed.")
    if corpus.chunks < asked:
        remarks.append(f"The text fills {corpus.chunks} chunks of the {asked} asked for.")
    if corpus.names != (RANDOM,):
        remarks += remarks_on_coverage(corpus.n_different, corpus.vocabulary)
    return remarks


def run(
    checkpoint: "Checkpoint",
    model: "Model",
    corpus: "Corpus",
    out: Path,
    settings: "Settings",
    remarks: list[str],
    earlier: "Sequence[Path]" = (),
) -> "Calibration":
    """Calibrate with a progress bar; the remarks are made once it begins."""
    from quantkit.calibration.calibrate import calibrate as work

    meter = open_meter("layer")

    def report(step: "Step") -> None:
        while remarks:
            note(remarks.pop(0))
        rate = f"{step.tokens_per_second:,.0f} tokens/s"
        meter.show("Calibrating", step.layers, step.n_layers, rate)

    try:
        return work(checkpoint, model, corpus, out, settings, report, note, earlier)
    finally:
        meter.close()


def _finish(
    result: "Calibration | Gathered",
    routing: "Mapping[int, Routing]",
    resumed: str,
    plot: Path | None,
    min_tokens: int,
    as_json: bool,
) -> None:
    """Draw and show where the tokens went, and what the matrix was made from."""
    if plot is not None:
        from quantkit.calibration.plot import draw

        draw(routing, plot, f"Routing over {result.chunks} chunks of {result.context} tokens")
    rows = [_row(layer, one) for layer, one in routing.items()]
    if as_json:
        emit_json(
            {
                "file": str(result.path),
                "chunks": result.chunks,
                "chunks_in_all": result.total,
                "context": result.context,
                "text": result.text,
                "perplexity": result.perplexity,
                f"resumed_{resumed}": result.resumed,
                "routing": rows,
            }
        )
        return
    if rows:
        show_table(_table(rows))
        borrowed = sum(any(row["borrowed"]) for row in rows)
        starved = sum(len(row["starved"]) for row in rows)
        told = f"{starved} starved experts (under a quarter of an even share)."
        if borrowed:
            told += (
                f" In {borrowed} layers, experts under {min_tokens} tokens borrowed others', at a "
                "quarter of their weight."
            )
        elif min_tokens:
            told += f" No expert had under {min_tokens} tokens."
        console.print(told, soft_wrap=True)
    made = f"{escape(str(result.path))}: {result.chunks} chunks of {result.context} tokens"
    if result.perplexity is not None:
        made += f", perplexity {result.perplexity:.4f}"
    if result.total != result.chunks:
        made += f"; with what it continues {result.total} chunks"
    console.print(made, soft_wrap=True)


def _row(layer: int, routing: "Routing") -> dict[str, Any]:
    even = mean(routing.tokens)
    return {
        "layer": layer,
        "tokens": list(routing.tokens),
        "borrowed": list(routing.borrowed),
        "imbalance": max(routing.tokens) / even,
        "starved": [e for e, n in enumerate(routing.tokens) if n < _STARVED_SHARE * even],
    }


def _table(rows: "Sequence[dict[str, Any]]") -> Table:
    table = Table(title="Tokens per expert", title_justify="left")
    table.add_column("layer", justify="right")
    for expert in range(len(rows[0]["tokens"])):
        table.add_column(str(expert), justify="right")
    table.add_column("most / mean", justify="right")
    table.add_column("starved", justify="right")
    for row in rows:
        cells = (
            f"{count:,}" + (f" +{extra:,}" if extra else "")
            for count, extra in zip(row["tokens"], row["borrowed"], strict=True)
        )
        starved = ", ".join(map(str, row["starved"]))
        table.add_row(str(row["layer"]), *cells, f"{row['imbalance']:.2f}", starved)
    return table
