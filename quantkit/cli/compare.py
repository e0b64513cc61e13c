"""``quantkit compare``: how far artifacts are from the model they were made from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from quantkit.cli.output import (
    GpuLayersOption,
    JsonOption,
    OverwriteOption,
    ThreadsOption,
    console,
    emit_json,
    escape,
    note,
    show_table,
)
from quantkit.cli.panels import PICTURES, TEXT
from quantkit.cli.shared import WindowedTextOption, WindowOption
from quantkit.core.units import format_size

if TYPE_CHECKING:
    from quantkit.verification.compare import Comparison, Result


def compare(
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(metavar="ARTIFACT", help="Folders that quantkit built, or GGUF files."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The unquantized GGUF, or a quant such as q8_0  [default: found]"
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The checkpoint, to build an absent reference from."),
    ] = None,
    text: WindowedTextOption = None,
    chunks: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=TEXT,
            help="Windows of the text at most  [default: all]",
        ),
    ] = None,
    context: WindowOption = 512,
    threads: ThreadsOption = None,
    gpu_layers: GpuLayersOption = 0,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=1, metavar="SECONDS", help="For each artifact  [default: grows with the size]"
        ),
    ] = None,
    layers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=PICTURES,
            help="Heat map of this artifact's error, tensor by tensor.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            rich_help_panel=PICTURES,
            help="Write everything into one page.",
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            "--plots",
            metavar="FOLDER",
            rich_help_panel=PICTURES,
            help="Draw the pictures, SVG and PNG.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure artifacts against the unquantized reference, as llama.cpp runs them, and judge.

    Perplexity, KL divergence and top-token agreement have llama-perplexity's definitions. An
    artifact that crashes llama.cpp fails alone; the exit code is 1 when any fails. Of a model that
    embeds, the cosines of embeddings are measured; of one with encoder and decoder, the decoder's
    predictions.
    """
    from quantkit.api.compare import PictureOptions
    from quantkit.api.compare import compare as measure
    from quantkit.verification.comparisons import as_numbers

    found = measure(
        artifacts or (),
        reference=reference,
        checkpoint=checkpoint,
        text=text,
        chunks=chunks,
        context=context,
        threads=threads,
        gpu_layers=gpu_layers,
        timeout=timeout,
        pictures=PictureOptions(layers, html, plots, overwrite),
        note=note,
    )
    if as_json:
        emit_json(as_numbers(found))
    else:
        _show(found)
    found.raise_if_failed()


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
