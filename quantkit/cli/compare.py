"""``quantkit compare``: how far artifacts are from the model they were made from."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from quantkit.cli.output import (
    GpuLayersOption,
    JsonOption,
    console,
    emit_json,
    escape,
    note,
    show_table,
)
from quantkit.core.errors import CompareError, GGUFError, OutputError, QuantkitError
from quantkit.core.packages import require
from quantkit.core.units import format_size

if TYPE_CHECKING:
    from quantkit.verification.compare import Comparison, Result
    from quantkit.verification.subjects import Subject


def compare(
    artifacts: Annotated[
        list[Path] | None, typer.Argument(help="Folders that quantkit built, or GGUF files.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The unquantized GGUF, or a quant such as q8_0  [default: found]"
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The checkpoint, to build an absent reference from."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="UTF-8  [default: Python's documentation]")
    ] = None,
    chunks: Annotated[
        int | None, typer.Option(min=1, help="Windows of the text at most  [default: all]")
    ] = None,
    context: Annotated[int, typer.Option(min=32, help="Tokens per window.")] = 512,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads  [default: all]")] = None,
    gpu_layers: GpuLayersOption = 0,
    timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds per artifact  [default: grows with the size]"),
    ] = None,
    layers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Heat map of this artifact's error, tensor by tensor."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write everything into one page.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw the pictures, SVG and PNG.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure artifacts against the unquantized reference, as llama.cpp runs them, and judge.

    Perplexity, KL divergence and top-token agreement have llama-perplexity's definitions. An
    artifact that crashes llama.cpp fails alone; the exit code is 1 when any fails. Of a model that
    embeds, the cosines of embeddings are measured; of one with encoder and decoder, the decoder's
    predictions.
    """
    from quantkit.verification.compare import compare as run_compare
    from quantkit.verification.comparisons import as_numbers
    from quantkit.verification.subjects import export_all, is_quantized, outline_subjects

    if not artifacts:
        raise QuantkitError("Give what to compare: folders that quantkit built, or GGUF files.")
    if layers is not None or html is not None or plots is not None:
        require("matplotlib", "matplotlib", "plot", "Drawing pictures")
    for out in (html, plots):
        if out is not None and not out.absolute().parent.is_dir():
            raise OutputError(f"{out.parent} is not there; make it first.")
    if html is not None and html.is_dir():
        raise OutputError(f"{html} is a folder; name the page to write.")
    if plots is not None and plots.exists() and not plots.is_dir():
        raise OutputError(f"{plots} is a file; name a folder for the pictures.")
    if layers is not None:
        _open(layers)
    outlined = outline_subjects(artifacts)
    # Before anything is exported: there may be none.
    chosen = _reference(outlined, reference, checkpoint, artifacts)
    with _exports(artifacts[0]) as exports:
        subjects = export_all(
            outlined, exports, lambda name: note(f"Exporting {name}, for llama.cpp to run it")
        )
        chosen = dict(zip(outlined, subjects, strict=True)).get(chosen, chosen)
        if is_quantized(chosen):
            note(
                f"The reference {chosen.name} is quantized itself: its own error is not in the "
                "figures."
            )
        result = run_compare(
            subjects,
            chosen,
            text=text,
            context=context,
            windows=chunks,
            threads=threads,
            gpu_layers=gpu_layers,
            timeout=timeout,
            report=lambda what: note(f"Measuring {what}"),
        )
        _keep(result, artifacts)
        _draw(result, layers, html, plots)
    if as_json:
        emit_json(as_numbers(result))
    else:
        _show(result)
    if result.failed:
        count = f"{len(result.failed)} of {len(result.results)}"
        reasons = "; ".join(f"{r.subject.name}: {r.verdict.reason}" for r in result.failed)
        raise CompareError(f"{count} artifacts failed: {reasons}")


@contextmanager
def _exports(first: Path) -> Iterator[Path]:
    """A folder for GGUF files that are needed while they are compared; gone afterwards.

    It lies beside what is compared, where files of that size are expected.
    """
    beside = first if first.is_dir() and not (first / "config.json").is_file() else first.parent
    path = Path(f"{beside.absolute()}/.quantkit-exports-{os.getpid()}")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _reference(
    subjects: "list[Subject]", wish: str | None, checkpoint: Path | None, places: Sequence[Path]
) -> "Subject":
    """What artifacts are compared with: what is asked for, else their source, else what is there.

    Raises:
        GGUFError: there is nothing.

    """
    from quantkit.verification.origin import find_origin
    from quantkit.verification.subjects import REFERENCE_FOLDER, build_reference, pick_reference

    missing = ""
    if wish is None and checkpoint is None and (origin := find_origin(places)) is not None:
        if origin.subject is not None:
            return origin.subject
        missing = origin.missing
    if checkpoint is not None and checkpoint.suffix == ".gguf" and wish is None:
        return _open(checkpoint)
    found = pick_reference(subjects, wish)
    if found is not None:
        if checkpoint is not None:
            note(f"{found.name} is the reference; --checkpoint is not needed to build one.")
        if missing:
            note(f"{missing}; {found.name} is the reference instead.")
        return found
    first = places[0]
    folder = (first if first.is_dir() else first.absolute().parent) / REFERENCE_FOLDER
    if checkpoint is None:
        kept = sorted(folder.glob("*.gguf")) if wish is None else []
        if kept:
            found = pick_reference([_open(file) for file in kept], None)
        if found is not None:
            return found
        if missing:
            raise GGUFError(f"{missing}; give it with --reference, or build bf16 of it as well.")
        what = wish or "unquantized (f32, bf16 or f16) artifact"
        raise GGUFError(
            f"There is no {what} to compare with; give one with --reference, or the checkpoint "
            "with --checkpoint to build it from."
        )
    note(f"Building the reference into {folder}; it can be deleted afterwards.")
    return build_reference(checkpoint, folder, wish)


def _open(file: Path) -> "Subject":
    from quantkit.verification.subjects import open_subject

    return open_subject(file)


def _keep(result: "Comparison", places: Sequence[Path]) -> None:
    """Leave the figures in each folder of artifacts, where quantkit publish looks for them.

    Better ones of the same artifacts stay.
    """
    from quantkit.verification.comparisons import FILE, as_numbers, more_windows
    from quantkit.verification.subjects import holds_artifacts

    for folder in places:
        if not (folder.is_dir() and holds_artifacts(folder)):
            continue
        if windows := more_windows(folder / FILE, result):
            note(
                f"{folder / FILE} stays as it is: it is over {windows} windows of the same text, "
                f"and this one over {result.windows}."
            )
            continue
        try:
            with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
                json.dump(as_numbers(result), file, indent=2)
            Path(file.name).replace(folder / FILE)
        except OSError as error:
            note(f"{folder / FILE} cannot be written ({error.strerror}); the figures are not kept.")
        else:
            note(f"Kept in {folder / FILE}.")


def _draw(result: "Comparison", layers: Path | None, html: Path | None, plots: Path | None) -> None:
    if layers is None and html is None and plots is None:
        return
    from quantkit.verification.layers import weight_errors
    from quantkit.verification.pictures import draw_all
    from quantkit.verification.report import write_page

    errors = None
    if layers is not None:
        note(f"Reading the weights of {layers.name}")
        errors = weight_errors(_open(layers).gguf, result.reference.gguf)
    with tempfile.TemporaryDirectory(prefix="quantkit-") as temporary:
        folder = plots or (Path(temporary) if html else Path.cwd())
        folder.mkdir(exist_ok=True)
        pictures = draw_all(result, errors, layers.name if layers else "", folder)
        if html is not None:
            write_page(result, errors, layers.name if layers else "", pictures, html)
            note(f"Wrote {html}.")
        if html is None or plots is not None:
            note("Drew " + ", ".join(str(path) for path in pictures) + ".")


def _show(result: "Comparison") -> None:
    from quantkit.verification.subjects import told_apart

    if result.embeds:
        title = f"Against {result.reference.name}: embeddings of {result.windows} texts"
        quality = _table(title, ("size", "mean cosine", "worst"))
    else:
        quality = _table(
            f"Against {result.reference.name}: {result.windows} windows of {result.context} tokens",
            ("size", "PPL", "KLD", "99%", "same top", "RMS \u0394p"),
        )
    quality.add_column("verdict", no_wrap=True)
    speed = _table(
        f"Tokens per second {result.place} (threads: {result.threads})",
        ("prompt", "generation", "load", "memory"),
    )
    names = map(escape, told_apart([row.subject for row in result.results]))
    for row, name in zip(result.results, names, strict=True):
        quality.add_row(name, *_quality_cells(row, embeds=result.embeds))
        if row.speed is not None:
            speed.add_row(name, *_speed_cells(row))
    show_table(quality)
    for row in result.results:
        if row.verdict.ok and not row.verdict.judged:
            note(f"{row.subject.name}: {row.verdict.reason}")
    show_table(speed)
    best = result.results[0].measures
    error = f" PPL \u00b1 {best.ppl_pm:.2f} for all." if best is not None else ""
    meaning = (
        "Cosine: of the angle between an embedding and the reference's of the same text."
        if result.embeds
        else "KLD: mean, in nats; the reference's own row shows what its 16-bit rounding leaves."
    )
    console.print(f"[dim]Text: {escape(result.text)}.{error} {meaning}[/]", soft_wrap=True)


def _table(title: str, headings: tuple[str, ...]) -> Table:
    table = Table(
        title=escape(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("quant", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _quality_cells(row: "Result", *, embeds: bool) -> tuple[str, ...]:
    verdict = "[red]failed[/]"
    if row.verdict.ok:
        verdict = "[green]healthy[/]" if row.verdict.judged else "[yellow]not judged[/]"
    if row.is_reference:
        verdict = "reference"
    size = format_size(row.subject.n_bytes)
    m = row.measures
    if embeds:
        cosines = row.cosines
        figures = (f"{cosines.mean:.5f}", f"{cosines.worst:.5f}") if cosines else ("", "")
        return (size, *figures, verdict)
    if m is None:
        return (size, *[""] * 5, verdict)
    return (
        size,
        f"{m.ppl:.3f}",
        f"{max(m.kld, 0):.5f}",
        f"{max(m.kld_percentiles[3], 0):.4f}",
        f"{m.same_top:.2%}",
        f"{m.rms_dp:.2%}",
        verdict,
    )


def _speed_cells(row: "Result") -> tuple[str, ...]:
    speed = row.speed
    if speed is None:
        return ()
    return (
        f"{speed.prompt_tokens_per_second:,.0f}",
        f"{speed.generation_tokens_per_second:,.0f}" if speed.generation_tokens_per_second else "",
        f"{speed.load_seconds:.2f} s",
        format_size(speed.resident_bytes) if speed.resident_bytes else "",
    )
