"""``quantkit fit``: which quant of a model runs on a machine, how, and with how much to spare."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.api.budget import BudgetOptions, numbers_of
from quantkit.cli.converter import LlamaCppOption, MtpOption
from quantkit.cli.needs import FIT, FitWish, refuse_idle
from quantkit.cli.output import JsonOption, emit_json, note
from quantkit.core.errors import PlanError, QuantkitError
from quantkit.core.packages import require
from quantkit.core.units import format_size, parse_size

if TYPE_CHECKING:
    from quantkit.fitting.hardware import Machine
    from quantkit.fitting.probe import Curve
    from quantkit.fitting.subject import Buildable, PlanOptions, SizedModel
    from quantkit.recipes.machine import Found

LIST = "list"  # instead of a profile's name


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
        list[str] | None, typer.Option("--quant", "-q", help="Only these quants; repeat for more.")
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE", help="A GPU: its memory, such as 24GB, or rtx-4090; repeat for more."
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
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Rank by what quantkit compare --json measured  [default: MODEL/compare.json]",
        ),
    ] = None,
    every_row: Annotated[bool, typer.Option("--all", help="Show every quant.")] = False,
    documented: Annotated[
        bool, typer.Option("--documented", help="Only check what model pages claim.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw memory per quant.")
    ] = None,
    mtp: MtpOption = None,
    llama_cpp: LlamaCppOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which quant of a model to take for a machine, how to run it, and what else would fit.

    Only headers are read. Without --gpu, --ram and --hardware, the machine is this one.
    """
    from quantkit.checkpoint.converter.wish import ConverterOptions
    from quantkit.checkpoint.imatrix import load_imatrix
    from quantkit.fitting.answer import answer
    from quantkit.fitting.commands import Typed, source_words, steps_to
    from quantkit.fitting.documented import check_claims
    from quantkit.fitting.numbers import as_numbers
    from quantkit.fitting.probe import USUAL_CONTEXT, ContextSettings, probe
    from quantkit.fitting.quality import find_comparison, measured_scale, recorded_scale
    from quantkit.fitting.subject import PlanOptions, bundled_models, open_subject
    from quantkit.planning.quants import find_quants

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
    wishes = PlanOptions(
        gguf or None,
        parse_size(shard_size) if shard_size else None,
        load_imatrix(imatrix) if imatrix else None,
        ConverterOptions(llama_cpp, mtp=mtp, say=note),
    )
    subject = open_subject(model, wishes)
    if subject.n_fetched:
        note(f"Fetched {format_size(subject.n_fetched)} of {subject.title}'s files.")
    refuse_idle(command, FIT, FitWish(subject.is_as_it_is, formats))
    measured = None
    if (file := compare or find_comparison(model)) is not None:
        measured = measured_scale(file, subject)
    elif subject.origin == "artifacts":
        measured = recorded_scale(Path(model), subject)
    if compare is not None and measured is None:
        raise QuantkitError(f"{compare} has figures of none of these quants; leave --compare out.")
    settings = ContextSettings(
        context or min(USUAL_CONTEXT, subject.shape.n_ctx_train),
        parallel,
        kv_type.value,
        flash_attn,
    )
    here = not (gpu or ram or hardware)
    curve = probe(subject, settings, gpu=here and bool(machine.gpus))
    result = answer(subject, curve, machine, measured, weighted=imatrix is not None)
    typed = Typed(model, imatrix, shard_size, llama_cpp, mtp)
    steps = None
    if (best := result.best) is not None:
        folder = _folder_of_build(subject)
        steps = steps_to(best.variant, best.loss, best.command, subject, typed, folder)
    found = None
    if subject.buildable is not None and not quants and (as_json or not documented):
        searched = _search(subject.buildable, wishes, curve, machine)
        if searched is not None:
            words = []
            if settings == ContextSettings(settings.context):  # --for takes the context alone
                words = _machine_words(gpu, ram, hardware)
            words = words or ["--budget", f"{searched.variant.file_bytes}B"]
            if words[0] == "--for" and context is not None:
                words += ["--context", f"{context}"]
            source = source_words(subject, typed)
            found = searched, shlex.join(["quantkit", "build", *source, *words])
    findings = check_claims(model.lower(), settings, result) if documented else ()
    for warning in result.warnings:
        note(warning)
    if plot is not None:
        from quantkit.fitting.plot import draw

        draw(result, plot)
        note(f"Drew {plot}.")
    if as_json:
        numbers = as_numbers(result, steps)
        if found is not None:
            numbers["searched"] = {**numbers_of(found[0], machine), "command": found[1]}
        emit_json(
            numbers | ({"documented": [f.as_numbers() for f in findings]} if documented else {})
        )
        return
    from quantkit.cli.fit_page import show, show_claims

    if documented:
        show_claims(findings, result)
        return
    show(result, steps, found, every_row=every_row or bool(quants))


def _folder_of_build(subject: "SizedModel") -> str:
    """Where a build of the model puts its files."""
    if subject.buildable is None:
        return ""
    from quantkit.building.output import default_folder

    return str(default_folder(subject.buildable.metadata.base_name, only_gguf=True))


def _search(
    source: "Buildable", wishes: "PlanOptions", curve: "Curve", machine: "Machine"
) -> "Found | None":
    """The best recipe for a machine; None where none fits, or nothing is left to choose."""
    from quantkit.recipes.machine import MachineSearch

    weighted = wishes.imatrix is not None
    try:
        search = BudgetOptions().prepare(source, wishes, weighted=weighted, unquantized=False)
        return MachineSearch(search, source, wishes, curve, machine).best()
    except PlanError:
        return None


def _machine_words(gpus: list[str] | None, ram: str | None, profile: str | None) -> list[str]:
    """A machine as --for takes it; none for this one, and for what was named in another way."""
    if profile is not None:
        return [] if gpus or ram else ["--for", profile]
    return [] if ram is None else ["--for", " + ".join([*(gpus or ["0"]), ram])]


def complete(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments in which ``--hardware`` always has a value."""
    completed = []
    for argument, following in zip(arguments, [*arguments[1:], "-"], strict=False):
        completed.append(argument)
        if argument == "--hardware" and following.startswith("-"):
            completed.append(LIST)
    return completed


def _list_hardware(as_json: bool) -> None:
    from quantkit.fitting.hardware import hardware_profiles, machine_from_profile

    machines = {name: machine_from_profile(name) for name in hardware_profiles()}
    if as_json:
        emit_json({"hardware": {name: asdict(machine) for name, machine in machines.items()}})
        return
    from quantkit.cli.fit_page import show_machines

    show_machines(machines)


def _machine(gpus: list[str], ram: str | None, profile: str | None) -> "Machine":
    from dataclasses import replace

    from quantkit.fitting.hardware import machine_from_profile, machine_from_sizes, this_machine

    if profile is None:
        here = this_machine()
        return machine_from_sizes(gpus, ram, here) if gpus or ram else here
    known = machine_from_profile(profile)
    if not (gpus or ram):
        return known
    changed = machine_from_sizes(gpus, ram, known)
    return changed if gpus else replace(changed, gpus=known.gpus, unified=known.unified)
