"""``quantkit fit``: which quant of a model runs on a machine, how, and with how much to spare."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from quantkit.cli.converter import LlamaCppOption, MtpOption
from quantkit.cli.needs import FIT, FitWish, refuse_idle
from quantkit.cli.output import JsonOption, console, emit_json, escape, note, show_table
from quantkit.cli.searched import SearchWish, numbers_of
from quantkit.core.errors import PlanError, QuantkitError
from quantkit.core.packages import require
from quantkit.core.units import format_count, format_size, parse_size

if TYPE_CHECKING:
    from quantkit.fit.documented import Finding
    from quantkit.fit.hardware import Machine
    from quantkit.fit.placement import Placement
    from quantkit.fit.probe import Curve
    from quantkit.fit.subject import Buildable, Wishes
    from quantkit.fit.verdict import Answer, Row
    from quantkit.recipes.machine import Found

_USUAL_CONTEXT = 8192
LIST = "list"  # instead of a profile's name
_FEW = 3  # quants whose every detail is shown
_COLOURS = {
    "gpu": "green",
    "experts": "green",
    "layers": "yellow",
    "ram": "yellow",
    "disk": "red",
    "none": "red",
}


class KVType(StrEnum):
    """The names of ``fit.probe.KV_TYPES``, which are not imported to parse options."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


def fit(
    command: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="A folder, a GGUF, a Hub id, or a bundled name like mixtral-8x22b."),
    ] = None,
    quant: Annotated[
        list[str] | None, typer.Option("--quant", "-q", help="Only these quants; again for more.")
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE", help="A GPU: its memory, such as 24GB, or rtx-4090; again for more."
        ),
    ] = None,
    ram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="RAM, such as 32GB; alone: without a GPU.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens per sequence  [default: 8192, or what the model has]"),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=256, help="Sequences at a time.")] = 1,
    kv_type: Annotated[KVType, typer.Option(help="How the KV cache is stored.")] = KVType.F16,
    flash_attn: Annotated[
        bool, typer.Option("--flash-attn/--no-flash-attn", help="Whether attention is fused.")
    ] = True,
    hardware: Annotated[
        str | None,
        typer.Option(metavar="[PROFILE]", help="A known machine; without a name: lists them."),
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Split files that would be larger.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix to build with.")
    ] = None,
    documented: Annotated[
        bool, typer.Option("--documented", help="Check what model pages claim.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw memory per quant.")
    ] = None,
    mtp: MtpOption = None,
    llama_cpp: LlamaCppOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which quant of a model runs on a machine, how, and with how much to spare.

    Only headers are read. Without --gpu, --ram and --hardware, the machine is this one.
    """
    from quantkit.checkpoint.converter.wish import Wish
    from quantkit.checkpoint.imatrix import load_imatrix
    from quantkit.fit.documented import check_claims
    from quantkit.fit.probe import Settings, check_settings, probe
    from quantkit.fit.subject import Wishes, bundled_models, open_subject
    from quantkit.fit.verdict import answer, as_numbers
    from quantkit.plan.quants import find_quants

    if hardware == LIST:
        _list_hardware(as_json)
        return
    if model is None:
        raise QuantkitError(
            "Give a model: a checkpoint folder, a GGUF file, a Hub id, or one of these, which "
            f"need no network: {', '.join(bundled_models())}."
        )
    quants = find_quants(quant or ())
    formats = frozenset(chosen.format for chosen in quants)
    refuse_idle(command, FIT, FitWish(False, formats))
    if plot is not None:
        require("matplotlib", "matplotlib", "plot", "--plot")
    machine = _machine(gpu or [], ram, hardware)
    # What transformers loads is shown in any case.
    gguf = tuple(q for q in quants if q.format == "gguf")
    wishes = Wishes(
        gguf or None,
        parse_size(shard_size) if shard_size else None,
        load_imatrix(imatrix) if imatrix else None,
        Wish(llama_cpp, mtp=mtp, say=note),
    )
    subject = open_subject(model, wishes)
    if subject.n_fetched:
        note(f"Fetched {format_size(subject.n_fetched)} of {subject.title}'s files.")
    refuse_idle(command, FIT, FitWish(subject.is_as_it_is, formats))
    tokens = context or min(_USUAL_CONTEXT, subject.shape.n_ctx_train)
    settings = Settings(tokens, parallel, kv_type.value, flash_attn)
    check_settings(subject.shape, settings)
    here = not (gpu or ram or hardware)
    curve = probe(subject, settings, gpu=here and bool(machine.gpus))
    result = answer(subject, curve, machine)
    best = None
    if subject.buildable is not None and not quants:
        best = _search(subject.buildable, wishes, curve, machine)
    found = None
    if best is not None:
        words = []
        if settings == Settings(tokens):  # of how it is to be run, --for takes the context alone
            words = _machine_words(gpu, ram, hardware)
        words = words or ["--budget", f"{best.variant.file_bytes}B"]
        if words[0] == "--for" and context is not None:
            words += ["--context", f"{context}"]
        found = best, shlex.join(["quantkit", "build", model, *words])
    findings = check_claims(model.lower(), settings, result) if documented else ()
    for warning in result.warnings:
        note(warning)
    if plot is not None:
        from quantkit.fit.plot import draw

        draw(result, plot)
        note(f"Drew {plot}.")
    if as_json:
        numbers = as_numbers(result)
        if found is not None:
            numbers["searched"] = {**numbers_of(found[0], machine), "command": found[1]}
        emit_json(
            numbers | ({"documented": [f.as_numbers() for f in findings]} if documented else {})
        )
        return
    _show(result)
    if found is not None:
        _show_searched(*found, machine)
    if documented:
        _show_claims(findings, result.subject.title)


def _search(
    source: "Buildable", wishes: "Wishes", curve: "Curve", machine: "Machine"
) -> "Found | None":
    """The best recipe for a machine; None where none fits, or nothing is left to choose."""
    from quantkit.recipes.machine import MachineSearch

    weighted = wishes.imatrix is not None
    try:
        search = SearchWish().prepare(source, wishes, weighted=weighted, unquantized=False)
        return MachineSearch(search, source, wishes, curve, machine).best()
    except PlanError:
        return None


def _machine_words(gpus: list[str] | None, ram: str | None, profile: str | None) -> list[str]:
    """A machine as --for takes it; none for this one, and for what was named in another way."""
    if profile is not None:
        return [] if gpus or ram else ["--for", profile]
    return [] if ram is None else ["--for", " + ".join([*(gpus or ["0"]), ram])]


def _show_searched(best: "Found", command: str, machine: "Machine") -> None:
    from quantkit.fit.verdict import describe

    variant, placement = best.variant, best.placement
    assert placement is not None  # noqa: S101 - it was placed
    size = _figure(variant.file_bytes / 1e9)
    console.print(
        f"[bold]searched[/]: {variant.bits_per_weight:.2f} bits, {size} GB, {describe(placement)}; "
        f"weights take {best.share_used(machine):.1%} of the memory that is there for them "
        f"({escape(best.recipe.basis)}).",
        soft_wrap=True,
    )
    console.print(f"  {escape(command)}", soft_wrap=True)


def complete(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments in which ``--hardware`` always has a value."""
    completed = []
    for argument, following in zip(arguments, [*arguments[1:], "-"], strict=False):
        completed.append(argument)
        if argument == "--hardware" and following.startswith("-"):
            completed.append(LIST)
    return completed


def _list_hardware(as_json: bool) -> None:
    from quantkit.fit.hardware import hardware_profiles, machine_from_profile
    from quantkit.fit.verdict import gib

    machines = {name: machine_from_profile(name) for name in hardware_profiles()}
    if as_json:
        emit_json({"hardware": {name: asdict(machine) for name, machine in machines.items()}})
        return
    table = Table(title="Hardware that --hardware knows", title_justify="left")
    for heading in ("profile", "machine"):
        table.add_column(heading)
    for heading in ("VRAM", "RAM"):
        table.add_column(heading, justify="right")
    for name, machine in machines.items():
        vram = gib(machine.vram) if machine.gpus else ""
        table.add_row(name, escape(machine.title), vram, gib(machine.ram))
    show_table(table)


def _machine(gpus: list[str], ram: str | None, profile: str | None) -> "Machine":
    from dataclasses import replace

    from quantkit.fit.hardware import machine_from_profile, machine_from_sizes, this_machine

    if profile is None:
        here = this_machine()
        return machine_from_sizes(gpus, ram, here) if gpus or ram else here
    known = machine_from_profile(profile)
    if not (gpus or ram):
        return known
    changed = machine_from_sizes(gpus, ram, known)
    return changed if gpus else replace(changed, gpus=known.gpus, unified=known.unified)


def _show(result: "Answer") -> None:
    from quantkit.fit.verdict import gib

    subject, machine = result.subject, result.machine
    shape = subject.shape
    active = f", {format_count(subject.n_active)} active per token" if shape.n_experts else ""
    console.print(
        f"[bold]{escape(subject.title)}[/]: {format_count(subject.n_parameters)} parameters"
        f"{active}, trained for {shape.n_ctx_train:,} tokens"
    )
    gpus = ", ".join(f"{escape(g.name)} {gib(g.usable)}" for g in machine.gpus) or "no GPU"
    disk = f", {format_size(machine.disk)} of disk" if machine.disk is not None else ""
    console.print(f"On {escape(machine.title)}: {gpus}; RAM {gib(machine.ram)}{disk} usable")
    many = f" x {result.settings.parallel}" if result.settings.parallel > 1 else ""
    table = Table(
        title=f"{result.settings.context:,} tokens{many}, KV cache {result.settings.kv_type}; "
        "files in GB, memory in GiB",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("quant", no_wrap=True)
    for heading in ("bits", "file", "VRAM", "RAM"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    table.add_column("spare", justify="right", no_wrap=True)
    table.add_column("context", justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(
            *_cells(row, result.recommended), style="bold" if _is_best(row, result) else ""
        )
    if result.rows:
        show_table(table)
    _show_others(result)
    if result.rows:
        console.print(_footnotes(result), soft_wrap=True)
    if len(result.rows) <= _FEW:
        _show_details(result)
    best = next((row for row in result.rows if _is_best(row, result)), None)
    if best is None:
        console.print(f"[bold red]None[/]: {escape(result.reason)}.", soft_wrap=True)
        return
    console.print(f"[bold green]{best.variant.name}[/]: {escape(result.reason)}.", soft_wrap=True)
    console.print(f"  {escape(best.command)}", soft_wrap=True)


def _show_details(result: "Answer") -> None:
    """Of a few quants, every part of their memory, the command, and what would help."""
    from quantkit.fit.verdict import gib

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


def _disk(row: "Row") -> str:
    variant = row.variant
    accuracy = "" if variant.file_is_exact else ", header estimated"
    text = f"{variant.file_bytes:,} bytes in {variant.n_files} file"
    text += ("s" if variant.n_files > 1 else "") + accuracy
    if variant.download_bytes:
        text += f"; {format_size(variant.download_bytes)} to download to build it"
    if row.disk_to_build:
        text += f", {format_size(row.disk_to_build)} of disk with the checkpoint"
    return text


def _is_best(row: "Row", result: "Answer") -> bool:
    return row.variant.name == result.recommended


def _cells(row: "Row", recommended: str | None) -> tuple[str, ...]:
    from quantkit.fit.memory import GIB, total

    variant, placement = row.variant, row.placement
    in_ram = total(placement.parts, "RAM")
    on_gpus = total(placement.parts) - in_ram
    spare = _figure(placement.spare / GIB)
    if not placement.fits:
        spare = f"[red]-{_figure(placement.short / GIB)}[/]"
    star = (" *" if variant.needs_imatrix else "") + (" +" if variant.requantizes else "")
    arrow = " <" if variant.name == recommended else ""
    return (
        f"{variant.name}{star}{arrow}",
        f"{variant.bits_per_weight:.2f}",
        _figure(variant.file_bytes / 1e9),
        _figure(on_gpus / GIB) if on_gpus else "",
        _figure(in_ram / GIB),
        f"[{_COLOURS[placement.mode]}]{_short(placement)}[/]",
        spare,
        f"{row.longest_context:,}" if row.longest_context else "",
    )


def _short(placement: "Placement") -> str:
    """A verdict for a column beside what is spare or missing."""
    from quantkit.fit.verdict import describe

    if placement.mode == "experts":
        return f"{placement.n_cpu_moe} x experts in RAM"
    return describe(placement).removeprefix("fits, ").partition(", ")[0]


def _figure(value: float) -> str:
    """A number for a column of one unit."""
    if value < 0.1:
        return f"{value:.2g}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _show_others(result: "Answer") -> None:
    from quantkit.fit.memory import GIB, total

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


def _footnotes(result: "Answer") -> str:
    lines = []
    if any(row.variant.needs_imatrix for row in result.rows):
        lines.append("* needs an importance matrix, whose name the file's header holds too")
    if any(row.variant.requantizes for row in result.rows):
        lines.append("+ encodes weights anew that are quantized: build with --allow-requantize")
    labels = {
        part.label
        for row in result.rows
        for part in row.placement.parts
        if part.name == "compute" and part.device != "RAM"
    }
    held = {part.name for row in result.rows for part in row.placement.parts}
    told = [name for name in ("KV cache", "state") if name in held]
    if result.curve.kv_is_exact:
        sure = "Weights and KV cache are exact, buffers probed with llama.cpp's own dry run"
    else:
        sure = f"Weights are exact, {', '.join([*told, 'buffers'])} probed with llama.cpp's dry run"
    if "modelled" in labels:
        sure += ", the GPU's compute buffer and overhead modelled (not asked of a GPU)"
    lines.append(sure + ".")
    if any(row.placement.mode == "experts" for row in result.rows):
        lines.append("N x experts in RAM: of N layers; all else is in VRAM.")
    if result.subject.origin in ("bundled", "config"):
        lines.append("Tensors are exact; a file's header counts an estimated vocabulary (< 1 MB).")
    return "[dim]" + "\n".join(map(escape, lines)) + "[/]"


def _show_claims(findings: "tuple[Finding, ...]", title: str) -> None:
    if not findings:
        note(f"No documented requirements of {title} are recorded.")
        return
    console.print("\n[bold]Documented requirements[/]")
    for finding in findings:
        verdict = "[green]holds[/]" if finding.holds else "[red]does not hold[/]"
        console.print(f"{escape(finding.model)}, {escape(finding.claim)}: {verdict}")
        console.print(f"  {escape(finding.computed)}", soft_wrap=True)
    for source in dict.fromkeys(finding.source for finding in findings):
        console.print(f"[dim]Claims: {escape(source)}[/]", soft_wrap=True)
