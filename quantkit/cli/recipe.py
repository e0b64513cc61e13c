"""``quantkit recipe``: which type each tensor should have, within so many bytes."""

import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from quantkit.api.budget import BudgetOptions, numbers_of
from quantkit.api.needs import AUTO
from quantkit.cli.budget import (
    BitsOption,
    BudgetOption,
    ForOption,
    MeasuredOption,
    NoFloorOption,
    TypesOption,
)
from quantkit.cli.completion import complete_model
from quantkit.cli.converter import LlamaCppOption, MtpOption
from quantkit.cli.output import (
    JsonOption,
    OverwriteOption,
    console,
    emit_json,
    escape,
    note,
    show_table,
)
from quantkit.cli.panels import BUDGET, QUALITY
from quantkit.core.errors import OutputError, PlanError
from quantkit.core.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantkit.fitting.hardware import Machine
    from quantkit.recipes.machine import Found


def recipe(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            autocompletion=complete_model,
            help="A folder, a GGUF, a Hub id, or a bundled name like mixtral-8x22b.",
        ),
    ],
    budget: BudgetOption = None,
    bpw: BitsOption = None,
    for_: ForOption = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=BUDGET,
            help="With --for: tokens  [default: 8192, or what the model has]",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.toml", help="Keep the recipe.")
    ] = None,
    tensor_type_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write it for llama-quantize --tensor-type-file."),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=QUALITY,
            help="Importance matrix to build with; `auto` makes one.",
        ),
    ] = None,
    measured: MeasuredOption = None,
    types: TypesOption = None,
    no_floor: NoFloorOption = None,
    mtp: MtpOption = None,
    llama_cpp: LlamaCppOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search the best type for each tensor, within a size or a machine's memory.

    Only headers are read.
    """
    from quantkit.checkpoint.converter.wish import ConverterOptions
    from quantkit.checkpoint.imatrix import load_imatrix, require_same_model
    from quantkit.core.writing import replace_file, require_new
    from quantkit.fitting.subject import PlanOptions, open_subject
    from quantkit.recipes.candidates import quantizable
    from quantkit.recipes.file import tensor_type_file as lines_of
    from quantkit.recipes.file import write_recipe

    wish = BudgetOptions(
        budget, bpw, for_, context, measured, tuple(types or ()), tuple(no_floor or ())
    )
    wish.require_one()
    _require_places(out, tensor_type_file)
    require_new(out, tensor_type_file, overwrite=overwrite)
    matrix = load_imatrix(imatrix) if imatrix is not None and imatrix != AUTO else None
    wishes = PlanOptions((), None, matrix, ConverterOptions(llama_cpp, mtp=mtp, say=note))
    subject = open_subject(model, wishes)
    if subject.buildable is None:
        raise PlanError(
            f"{subject.title} is quantized already, and recipes are for what can be built; give "
            "the checkpoint, or a GGUF in bf16, f16 or f32."
        )
    if matrix is not None:
        buildable = subject.buildable.model
        require_same_model(matrix, buildable.targets, quantizable(buildable))
    found, machine = wish.search(
        subject.buildable, wishes, weighted=imatrix is not None, look=lambda: subject
    )
    if out is not None:
        with _naming_failures(out):
            write_recipe(out, found.recipe)
        note(f"Wrote {out}.")
    if tensor_type_file is not None:
        with _naming_failures(tensor_type_file):
            replace_file(tensor_type_file, lines_of(found.recipe).encode())
        note(
            f"Wrote {tensor_type_file}, for llama-quantize --tensor-type-file "
            f"{shlex.quote(str(tensor_type_file))} IN.gguf OUT.gguf {found.recipe.base}."
        )
    if as_json:
        emit_json(numbers_of(found, machine))
        return
    _show(found, machine)
    if out is None:
        console.print("  -o FILE.toml keeps it, for quantkit build --recipe FILE.toml")
        return
    weighed = ["--imatrix", str(imatrix)] if imatrix is not None else []
    has_weights = subject.origin not in ("bundled", "config")
    source = model if has_weights else "CHECKPOINT"
    command = shlex.join(["quantkit", "build", source, "--recipe", str(out), *weighed])
    console.print(f"  {escape(command)}", soft_wrap=True)


def _require_places(*paths: Path | None) -> None:
    """Refuse files that could not be written, or would be one, before any search.

    Raises:
        OutputError: one is a folder or a link, or lies in none, or both are one.

    """
    from quantkit.core.writing import refuse_links

    given = [path for path in paths if path is not None]
    for path in given:
        refuse_links(path)
        if path.is_dir():
            raise OutputError(f"{path} is a folder; name the file to write.")
        if not path.parent.is_dir():
            raise OutputError(
                f"{path} cannot be written: {path.parent} is not a folder; create it first."
            )
    if len({path.resolve() for path in given}) < len(given):
        raise OutputError(
            f"-o and --tensor-type-file both name {given[0]}; name two files, for they differ."
        )


@contextmanager
def _naming_failures(path: Path) -> "Iterator[None]":
    """Turn what the system refuses into a sentence.

    Raises:
        OutputError: the file cannot be written.

    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}); choose another place."
        ) from None


def _show(found: "Found", machine: "Machine | None") -> None:
    """The answer, and what types go where."""
    from quantkit.fitting.verdict import describe

    variant, recipe = found.variant, found.recipe
    about = "" if variant.file_is_exact else "about "
    console.print(
        f"[bold green]{variant.name}[/]: {about}{variant.file_bytes:,} bytes "
        f"({format_size(variant.file_bytes)}), {variant.bits_per_weight:.2f} bits per weight",
        soft_wrap=True,
    )
    if found.placement is not None and machine is not None:
        console.print(
            f"On {escape(machine.title)}: {describe(found.placement)}; weights take "
            f"{found.share_used(machine):.1%} of the memory available to them",
            soft_wrap=True,
        )
    sizes = variant.size_of
    table = Table(title=f"Types, on the base of {recipe.base}", title_justify="left")
    for heading in ("tensors", "layers", "type"):
        table.add_column(heading)
    table.add_column("size", justify="right")
    for span, kind in recipe.spans:
        size = format_size(sum(sizes[name] for name in span.names))
        table.add_row(escape(span.rest), span.shown_layers, kind, size)
    show_table(table)
    console.print(f"[dim]Losses: {escape(recipe.basis)}.[/]", soft_wrap=True)
