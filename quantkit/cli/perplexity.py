"""``quantkit perplexity``: how well models predict a text."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from quantkit.api.needs import refuse_idle
from quantkit.cli.calibrate import Device
from quantkit.cli.meters import open_meter
from quantkit.cli.needs import PERPLEXITY, PerplexityWish, typed
from quantkit.cli.output import JsonOption, console, emit_json, escape, note, show_table
from quantkit.cli.panels import TEXT
from quantkit.cli.shared import WindowedTextOption, WindowOption
from quantkit.core.errors import CompareError, GGUFError
from quantkit.core.units import format_count, parse_size
from quantkit.core.writing import write_file

if TYPE_CHECKING:
    from quantkit.calibration.settings import Settings
    from quantkit.calibration.text import Corpus
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.families.model import Decoder

_ALL = 2**31  # chunks: as many as the text has


@dataclass(frozen=True, slots=True)
class _Row:
    """One model: its perplexity with one standard error, or why it has none."""

    name: str
    parameters: int
    how: str
    ppl: float | None
    ppl_pm: float | None
    failure: str | None = None


def perplexity(
    command: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Checkpoints (folders, raw weights, names on the Hub), GGUF files.",
        ),
    ],
    text: WindowedTextOption = None,
    experts: Annotated[
        bool, typer.Option("--experts", help="Also each expert kept alone, and their mean.")
    ] = False,
    chunks: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            rich_help_panel=TEXT,
            help="Windows of the text at most  [default: all]",
        ),
    ] = None,
    context: WindowOption = 512,
    device: Annotated[
        Device, typer.Option(metavar="|".join(Device), help="Where checkpoints are run.")
    ] = Device.CPU,
    max_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="The most memory for activations; more go to disk.")
    ] = "4GiB",
    threads: Annotated[
        int | None,
        typer.Option(
            "--jobs", "--threads", min=1, metavar="N", help="Threads of llama.cpp  [default: all]"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure perplexity: of checkpoints layer by layer, of GGUF files in llama.cpp.

    Both score the second half of every window, as llama-perplexity does, so that the figures can
    be set beside each other.
    """
    from quantkit.verification.compare import DEFAULT_TEXT

    memory = parse_size(max_memory)
    artifacts = [name for name in models if _is_artifact(name)]
    checkpoints = [name for name in models if name not in artifacts]
    refuse_idle(typed(command), PERPLEXITY, PerplexityWish(checkpoints, artifacts))
    opened = {}
    if checkpoints:
        from quantkit.api.running import require_running

        require_running("calibrate", "The perplexity of a checkpoint")
        for name in checkpoints:
            opened[name] = _open(name, experts)
    for name in artifacts:
        if not Path(name).exists():
            raise GGUFError(f"{name} does not exist; check the path.")
    rows: list[_Row] = []
    with _text(text) as file:
        for name in models:
            if name in artifacts:
                rows += _run_artifacts(Path(name), file, context, chunks, threads)
                continue
            rows += _stream(name, *opened[name], file, context, chunks, device, memory, experts)
    title = text.name if text else DEFAULT_TEXT
    if as_json:
        emit_json({"text": title, "context": context, "models": [_numbers(row) for row in rows]})
    else:
        _show(rows, title)
    failed = [row for row in rows if row.ppl is None]
    if failed:
        reasons = "; ".join(f"{row.name}: {row.failure}" for row in failed)
        raise CompareError(f"{len(failed)} of {len(rows)} models could not be measured: {reasons}")


def _open(name: str, experts: bool) -> "tuple[Checkpoint, Decoder | None]":
    """A checkpoint, and the model that it makes where that is one of quantkit's own families."""
    from quantkit.api.running import open_noted
    from quantkit.checkpoint.densified import require_experts
    from quantkit.checkpoint.folder import is_foreign
    from quantkit.checkpoint.open import open_stored_by_name

    checkpoint = open_stored_by_name(name)
    if checkpoint.header is None and is_foreign(checkpoint) and not experts:
        for remark in checkpoint.remarks:
            note(remark)
        return checkpoint, None
    known, model = open_noted(checkpoint, "build a GGUF of it and give that", note)
    if experts:
        require_experts(known, model)
    return known, model


def _is_artifact(name: str) -> bool:
    """Whether something is run in llama.cpp: a GGUF, a folder of them, a quantized folder."""
    from quantkit.checkpoint.folder import is_artifact

    path = Path(name)
    if path.is_dir():
        if (path / "config.json").is_file():
            return is_artifact(path)
        return not (path / "params.json").is_file()
    return path.suffix == ".gguf"


def _run_artifacts(
    path: Path, text: Path, context: int, chunks: int | None, threads: int | None
) -> list[_Row]:
    from quantkit.verification.compare import perplexities
    from quantkit.verification.subjects import find_subjects

    with tempfile.TemporaryDirectory(prefix="quantkit-") as exports:
        subjects = find_subjects([path], Path(exports), lambda name: note(f"Exporting {name}"))
        found = perplexities(
            subjects,
            text=text,
            context=context,
            windows=chunks,
            threads=threads,
            report=lambda name: note(f"Measuring {name}"),
        )
    return [
        _Row(s.name, s.n_parameters, "llama.cpp", p.ppl, p.ppl_pm, p.failure)
        for s, p in zip(subjects, found, strict=True)
    ]


def _stream(
    name: str,
    checkpoint: "Checkpoint",
    model: "Decoder | None",
    text: Path,
    context: int,
    chunks: int | None,
    device: Device,
    memory: int,
    experts: bool,
) -> list[_Row]:
    """A checkpoint, and where it is asked for what becomes of its experts."""
    from quantkit.calibration.settings import Settings
    from quantkit.calibration.sources import TextSource
    from quantkit.calibration.text import make_corpus
    from quantkit.checkpoint.densified import densified

    corpus = make_corpus(checkpoint, (TextSource(text),), chunks or _ALL, context)
    settings = Settings(device.value, 0, memory)
    title = Path(name).name
    variants = [(title, checkpoint)]
    if experts and model is not None:
        count, layers = model.hparams.num_local_experts, model.hparams.num_hidden_layers
        for expert in range(count):
            alone = [float(number == expert) for number in range(count)]
            part, _ = densified(checkpoint, model, [alone] * layers)
            variants.append((f"expert {expert}", part))
        part, _ = densified(checkpoint, model, [[1.0] * count] * layers)
        variants.append((f"{count}x linear merge", part))
    return [_score(label, part, corpus, settings) for label, part in variants]


def _score(
    name: str,
    checkpoint: "Checkpoint",
    corpus: "Corpus",
    settings: "Settings",
) -> _Row:
    from quantkit.calibration.lockstep.perplexity import token_losses
    from quantkit.verification.divergence import mean_and_error

    meter = open_meter("layer")

    def report(done: float, layers: int) -> None:
        meter.show(f"Measuring {name}", done, layers)

    try:
        losses, count = token_losses(checkpoint, corpus, settings, report)
    finally:
        meter.close()
    mean, error = mean_and_error(losses)
    return _Row(name, count, "streamed", exp(mean), exp(mean) * error)


@contextmanager
def _text(text: Path | None) -> Iterator[Path]:
    """The text as a file."""
    from quantkit.verification.compare import default_text

    if text is not None:
        yield text
        return
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        file = Path(folder) / "text"
        write_file(file, default_text().encode())
        yield file


def _numbers(row: _Row) -> dict[str, object]:
    return {
        "name": row.name,
        "parameters": row.parameters,
        "run": row.how,
        "perplexity": row.ppl,
        "perplexity_pm": row.ppl_pm,
        "failure": row.failure,
    }


def _show(rows: list[_Row], title: str) -> None:
    table = Table()
    table.add_column("model")
    for heading in ("parameters", "perplexity", "\u00b1"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("run")
    for row in rows:
        if row.ppl is None or row.ppl_pm is None:
            figures = ("failed", "")
        else:
            figures = (f"{row.ppl:,.2f}", f"{row.ppl_pm:,.2f}")
        table.add_row(escape(row.name), format_count(row.parameters), *figures, row.how)
    show_table(table)
    console.print(f"[dim]Text: {escape(title)}[/]", soft_wrap=True)
