"""What ``quantkit fit`` prints for people: the answer first, the table of quants, the details."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from quantkit.api.fit import Fitted, Searched
from quantkit.cli.output import console, escape, note, show_table
from quantkit.core.units import format_count, format_size
from quantkit.fitting.answer import Answer
from quantkit.fitting.commands import Steps
from quantkit.fitting.hardware import Machine
from quantkit.fitting.memory import GIB, total
from quantkit.fitting.placement import Placement
from quantkit.fitting.quality import Scale
from quantkit.fitting.verdict import Row, describe, gib

if TYPE_CHECKING:
    from quantkit.fitting.documented import Finding

_FEW = 3  # quants whose every detail is shown
_MOST_ROWS = 8  # of those that are worth choosing
_TOO_LARGE = 2  # rows that show what a little more memory would give
_COLOURS = {
    "gpu": "green",
    "experts": "green",
    "layers": "yellow",
    "ram": "yellow",
    "disk": "red",
    "none": "red",
}


def show(found: Fitted, *, every_row: bool) -> None:
    """Print an answer; ``every_row``: all quants, not only those that are worth choosing."""
    result = found.answer
    _show_answer(result, found.steps)
    if found.searched is not None:
        _show_searched(found.searched, result.machine)
    console.print()
    _show_model(result)
    rows = result.rows if every_row else _worth_choosing(result)
    if rows:
        _show_rows(result, rows, every_row=every_row)
    _show_others(result)
    if rows:
        console.print(_footnotes(result, rows), soft_wrap=True)
    if len(result.rows) <= _FEW:
        _show_details(result)


def _show_answer(result: Answer, steps: Steps | None) -> None:
    where = f"[bold]{escape(result.subject.title)}[/] on {escape(result.machine.title)}"
    best = result.best
    if best is None or steps is None:
        console.print(f"{where}: [bold red]no quant[/].", soft_wrap=True)
        console.print(f"  {_sentence(result.reason)}", soft_wrap=True)
        return
    size = f"{_figure(best.variant.file_bytes / 1e9)} GB"
    console.print(f"{where}: [bold green]{best.variant.name}[/], {size}.", soft_wrap=True)
    console.print(f"  {_sentence(result.reason)}", soft_wrap=True)
    if known := _qualities(result, best):
        console.print(f"  {_sentence(known)}", soft_wrap=True)
    for command in filter(None, (steps.get, steps.run)):
        console.print(f"  {escape(command)}", soft_wrap=True)


def _sentence(text: str) -> str:
    return escape(text[:1].upper() + text[1:]) + "."


def _qualities(result: Answer, row: Row) -> str:
    """What is known of a quant besides its size, in words."""
    found = []
    if row.loss is not None:
        how = " with an importance matrix" if row.loss.weighted else ""
        found.append(f"mean KLD {row.loss.kld:.2g}{how} ({_basis(result.scale)})")
    if row.tokens_per_second is not None:
        found.append(f"roughly {_figure(row.tokens_per_second)} tokens/s (an estimate)")
    return "; ".join(found)


def _basis(scale: Scale) -> str:
    """Where losses come from, in a few words; the footnote has all of them."""
    of = "for" if scale.label == "published" else "by"
    return f"{scale.label} {of} {scale.source.partition(',')[0]}"


def _show_searched(searched: Searched, machine: Machine) -> None:
    best = searched.found
    variant, placement = best.variant, best.placement
    assert placement is not None  # noqa: S101 - it was placed
    size = _figure(variant.file_bytes / 1e9)
    console.print(
        f"[bold]Or a mixture searched[/] for this machine: {variant.bits_per_weight:.2f} bits, "
        f"{size} GB, {describe(placement)}; weights take {best.share_used(machine):.1%} of the "
        f"memory available to them ({escape(best.recipe.basis)}).",
        soft_wrap=True,
    )
    console.print(f"  {escape(searched.command)}", soft_wrap=True)


def _show_model(result: Answer) -> None:
    subject, machine = result.subject, result.machine
    shape = subject.shape
    active = f", {format_count(subject.n_active)} active per token" if shape.n_experts else ""
    console.print(
        f"{escape(subject.title)}: {format_count(subject.n_parameters)} parameters{active}, "
        f"trained for {shape.n_ctx_train:,} tokens",
        soft_wrap=True,
    )
    gpus = ", ".join(f"{escape(g.name)} {gib(g.usable)}" for g in machine.gpus) or "no GPU"
    disk = f", {format_size(machine.disk)} of disk" if machine.disk is not None else ""
    console.print(
        f"{escape(machine.title)}: {gpus}; RAM {gib(machine.ram)}{disk} usable", soft_wrap=True
    )


def _worth_choosing(result: Answer) -> tuple[Row, ...]:
    """The rows that help to choose: of what fits the best, and what is a little too large.

    Few are shown as they are.
    """
    if len(result.rows) <= _MOST_ROWS + _TOO_LARGE:
        return result.rows
    sound = [row for row in result.rows if row.loss is not None and row.beaten_by is None]
    fitting = [row for row in sound if row.placement.fits]
    best = result.best
    first = next((n for n, row in enumerate(fitting) if row is best), 0)
    start = max(0, min(first - _MOST_ROWS // 2, len(fitting) - _MOST_ROWS))
    chosen = fitting[start : start + _MOST_ROWS]
    chosen += [row for row in sound if not row.placement.fits][-_TOO_LARGE:]
    return tuple(row for row in result.rows if row is best or row in chosen)


def _show_rows(result: Answer, rows: Sequence[Row], *, every_row: bool) -> None:
    many = f" x {result.settings.parallel}" if result.settings.parallel > 1 else ""
    left_out = len(result.rows) - len(rows)
    more = f"; {left_out} more quants with --all" if left_out else ""
    table = Table(
        title=f"{result.settings.context:,} tokens{many}, KV cache {result.settings.kv_type}; "
        f"files in GB, memory in GiB{more}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    has_speed = any(row.tokens_per_second is not None for row in rows)
    table.add_column("quant", no_wrap=True)
    headings = ["KLD", "file", "VRAM", "RAM"]
    for heading in ["bits", *headings] if every_row else headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for heading in ["spare", "context", *(["~tok/s"] if has_speed else [])]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        is_best = row.variant.name == result.recommended
        cells = _cells(row, is_best=is_best, bits=every_row, speed=has_speed)
        table.add_row(*cells, style="bold" if is_best else "dim" if row.beaten_by else "")
    show_table(table)


def _cells(row: Row, *, is_best: bool, bits: bool, speed: bool) -> list[str]:
    variant, placement = row.variant, row.placement
    in_ram = total(placement.parts, "RAM")
    on_gpus = total(placement.parts) - in_ram
    spare = _figure(placement.spare / GIB)
    if not placement.fits:
        spare = f"[red]-{_figure(placement.short / GIB)}[/]"
    marks = (variant.needs_imatrix, "*"), (variant.requantizes, "+"), (row.beaten_by, "~")
    mark = "".join(f" {sign}" for is_so, sign in (*marks, (is_best, "<")) if is_so)
    cells = [
        f"{variant.name}{mark}",
        *([f"{variant.bits_per_weight:.2f}"] if bits else []),
        f"{row.loss.kld:.2g}" if row.loss is not None else "",
        _figure(variant.file_bytes / 1e9),
        _figure(on_gpus / GIB) if on_gpus else "",
        _figure(in_ram / GIB),
        f"[{_COLOURS[placement.mode]}]{_short(placement)}[/]",
        spare,
        f"{row.longest_context:,}" if row.longest_context else "",
    ]
    if speed:
        cells.append(_figure(row.tokens_per_second) if row.tokens_per_second is not None else "")
    return cells


def _short(placement: Placement) -> str:
    """A verdict for a column beside what is spare or missing."""
    if placement.mode == "experts":
        return f"{placement.n_cpu_moe} x experts in RAM"
    return describe(placement).removeprefix("fits, ").partition(", ")[0]


def _figure(value: float) -> str:
    """A number for a column of one unit."""
    if value < 0.1:
        return f"{value:.2g}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _show_others(result: Answer) -> None:
    if not result.others:
        return
    exact = any(part.label == "exact" for other in result.others for part in other.parts)
    weights = "the weights of bnb and GPTQ are exact, all else is" if exact else "everything is"
    table = Table(
        title=f"In transformers: {weights} modelled",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("format", no_wrap=True)
    for heading in ("weights", "VRAM"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("note")
    for other in result.others:
        verdict = "[green]fits in VRAM[/]" if other.fits else "[red]does not fit in VRAM[/]"
        verdict = verdict if result.machine.gpus else "[yellow]no GPU[/]"
        if other.weight_bytes is None:
            table.add_row(other.name, "", "", "[red]cannot hold it[/]", escape(other.note))
            continue
        size, memory = _figure(other.weight_bytes / 1e9), _figure(total(other.parts) / GIB)
        table.add_row(other.name, size, memory, verdict, escape(other.note))
    show_table(table)


def _footnotes(result: Answer, rows: Sequence[Row]) -> str:
    lines = []
    if any(row.variant.needs_imatrix for row in rows):
        lines.append("* needs an importance matrix, whose name the file's header holds too")
    if any(row.variant.requantizes for row in rows):
        lines.append("+ requantizes quantized weights: build with --allow-requantize")
    if beaten := [f"{row.variant.name} by {row.beaten_by}" for row in rows if row.beaten_by]:
        lines.append(f"~ another is no larger and loses less: {', '.join(beaten)}")
    if any(row.loss is not None for row in rows):
        lines.append(f"KLD: nats lost per token, {result.scale.label} ({result.scale.source}).")
    if any(row.tokens_per_second is not None for row in rows):
        lines.append("~tok/s: an estimate from the memory's bandwidth, see docs/fit.md.")
    labels = {
        part.label
        for row in rows
        for part in row.placement.parts
        if part.name == "compute" and part.device != "RAM"
    }
    held = {part.name for row in rows for part in row.placement.parts}
    told = [name for name in ("KV cache", "state") if name in held]
    if result.curve.kv_is_exact:
        sure = "Weights and KV cache are exact, buffers probed with llama.cpp's own dry run"
    else:
        sure = f"Weights are exact, {', '.join([*told, 'buffers'])} probed with llama.cpp's dry run"
    if "modelled" in labels:
        sure += ", the GPU's compute buffer and overhead modelled (not asked of a GPU)"
    lines.append(sure + ".")
    if any(row.placement.mode == "experts" for row in rows):
        lines.append("N x experts in RAM: of N layers; all else is in VRAM.")
    if result.subject.origin in ("bundled", "config"):
        lines.append("Tensors are exact; a file's header counts an estimated vocabulary (< 1 MB).")
    return "[dim]" + "\n".join(map(escape, lines)) + "[/]"


def _show_details(result: Answer) -> None:
    """Of a few quants, every part of their memory, the command, and what would help."""
    for row in result.rows:
        variant = row.variant
        console.print(f"[bold]{variant.name}[/]: {escape(_disk(row))}", soft_wrap=True)
        for part in row.placement.parts:
            size = f"{gib(part.n_bytes):>10}  {part.device:<6} {part.name}"
            console.print(f"  {size} [dim]{part.label}[/]")
        if row.command:
            console.print(f"  {escape(row.command)}", soft_wrap=True)
        if row.advice:
            console.print(f"  Would help: {escape('; or '.join(row.advice))}.", soft_wrap=True)


def _disk(row: Row) -> str:
    variant = row.variant
    accuracy = "" if variant.file_is_exact else ", header estimated"
    text = f"{variant.file_bytes:,} bytes in {variant.n_files} file"
    text += ("s" if variant.n_files > 1 else "") + accuracy
    if variant.download_bytes:
        text += f"; {format_size(variant.download_bytes)} to download to build it"
    if row.disk_to_build:
        text += f", {format_size(row.disk_to_build)} of disk with the checkpoint"
    return text


def show_claims(findings: "tuple[Finding, ...]", result: Answer) -> None:
    """Print what model pages claim, beside what it comes to: a page of its own."""
    title = result.subject.title
    if not findings:
        note(f"No documented requirements of {title} are recorded.")
        return
    console.print(f"[bold]Documented requirements[/] of {escape(title)}", soft_wrap=True)
    for finding in findings:
        verdict = "[green]holds[/]" if finding.holds else "[red]does not hold[/]"
        console.print(f"{escape(finding.model)}, {escape(finding.claim)}: {verdict}")
        console.print(f"  {escape(finding.computed)}", soft_wrap=True)
    for source in dict.fromkeys(finding.source for finding in findings):
        console.print(f"[dim]Claims: {escape(source)}[/]", soft_wrap=True)


def show_machines(machines: dict[str, Machine]) -> None:
    """Print the profiles of machines that are known."""
    table = Table(title="Hardware that --hardware knows", title_justify="left")
    for heading in ("profile", "machine"):
        table.add_column(heading)
    for heading in ("VRAM", "RAM"):
        table.add_column(heading, justify="right")
    for name, machine in machines.items():
        vram = gib(machine.vram) if machine.gpus else ""
        table.add_row(name, escape(machine.title), vram, gib(machine.ram))
    show_table(table)
