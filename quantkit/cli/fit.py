"""``quantkit fit``: which quant of a model runs on a machine, how, and with how much to spare."""

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.completion import (
    complete_gpu,
    complete_hardware,
    complete_model,
)
from quantkit.cli.converter import LlamaCppOption, MtpOption
from quantkit.cli.output import JsonOption, OverwriteOption, emit_json, note
from quantkit.cli.panels import MACHINE, QUALITY, RUN
from quantkit.cli.shared import OnlyQuantsOption
from quantkit.core.errors import QuantkitError
from quantkit.core.packages import require
from quantkit.core.writing import require_new

if TYPE_CHECKING:
    from quantkit.fitting.documented import Finding

LIST = "list"  # instead of a profile's name


class KVType(StrEnum):
    """The names of ``fitting.settings.KV_TYPES``, which are not imported to parse options."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


def fit(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            autocompletion=complete_model,
            help="A folder, a GGUF, a Hub id, or a bundled name like mixtral-8x22b.",
        ),
    ] = None,
    quant: OnlyQuantsOption = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE",
            rich_help_panel=MACHINE,
            autocompletion=complete_gpu,
            help="A GPU: its memory, such as 24GB, or rtx-4090; repeat for more.",
        ),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            rich_help_panel=MACHINE,
            help="RAM, such as 32GB; alone: without a GPU.",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=RUN,
            help="Tokens per sequence  [default: 8192, or what the model has]",
        ),
    ] = None,
    parallel: Annotated[
        int,
        typer.Option(
            min=1, max=256, metavar="N", rich_help_panel=RUN, help="Sequences at a time, up to 256."
        ),
    ] = 1,
    kv_type: Annotated[
        KVType,
        typer.Option(
            metavar="|".join(KVType), rich_help_panel=RUN, help="How the KV cache is stored."
        ),
    ] = KVType.F16,
    flash_attn: Annotated[
        bool,
        typer.Option(
            "--flash-attn/--no-flash-attn",
            rich_help_panel=RUN,
            help="Whether attention is fused.",
        ),
    ] = True,
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="[NAME]",
            rich_help_panel=MACHINE,
            autocompletion=complete_hardware,
            help="A known machine; without a name: lists them.",
        ),
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Split files that would be larger.")
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel=QUALITY, help="Importance matrix to build with."
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=QUALITY,
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
    overwrite: OverwriteOption = False,
    mtp: MtpOption = None,
    llama_cpp: LlamaCppOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which quant of a model to take for a machine, how to run it, and what else would fit.

    Only headers are read. Without --gpu, --ram and --hardware, the machine is this one.
    """
    from quantkit.api.fit import fit as find
    from quantkit.checkpoint.converter.wish import ConverterOptions
    from quantkit.fitting.hardware import MachineOptions
    from quantkit.fitting.settings import ContextSettings
    from quantkit.fitting.subject import bundled_models

    if hardware == LIST:
        _list_hardware(as_json)
        return
    if model is None:
        raise QuantkitError(
            "Give a model: a checkpoint folder, a GGUF file, a Hub id, or one of these, which "
            f"need no network: {', '.join(bundled_models())}."
        )
    if plot is not None:
        require("matplotlib", "matplotlib", "plot", "--plot")
        require_new(plot, overwrite=overwrite)
    found = find(
        model,
        quant or (),
        machine=MachineOptions(tuple(gpu or ()), ram, hardware),
        settings=ContextSettings(context or 0, parallel, kv_type.value, flash_attn),
        shard_size=shard_size,
        imatrix=imatrix,
        compare=compare,
        converter=ConverterOptions(llama_cpp, mtp=mtp),
        search=as_json or not documented,
        note=note,
    )
    result = found.answer
    findings: tuple[Finding, ...] = ()
    if documented:
        from quantkit.fitting.documented import check_claims

        findings = check_claims(model.lower(), result)
    for warning in result.warnings:
        note(warning)
    if plot is not None:
        from quantkit.fitting.plot import draw

        draw(result, plot)
        note(f"Drew {plot}.")
    if as_json:
        claims = {"documented": [f.as_numbers() for f in findings]} if documented else {}
        emit_json(found.as_numbers() | claims)
        return
    from quantkit.cli.fit_page import show, show_claims

    if documented:
        show_claims(findings, result)
        return
    show(found, every_row=every_row or bool(quant))


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
