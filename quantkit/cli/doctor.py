"""``quantkit doctor``: what this machine has, what is missing, and how to get it."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from quantkit.cli.output import JsonOption, emit_json, escape, note, show_table

_COLOURS = {"ok": "green", "note": "yellow", "missing": "red"}


def doctor(
    fetch_converter: Annotated[
        bool,
        typer.Option(
            "--fetch-converter",
            help="First fetch llama.cpp's converter, for work without network. See "
            "docs/converter.md.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show versions, instruction sets, threads, memory and disk, and what is missing."""
    from quantkit.checkpoint.converter.provision import find_converter
    from quantkit.verification.doctor import examine

    if fetch_converter:
        find_converter(say=note)
    findings = examine()
    if as_json:
        emit_json({"findings": [asdict(finding) for finding in findings]})
    else:
        table = Table(show_header=False, box=None)
        for finding in findings:
            status = f"[{_COLOURS[finding.status]}]{finding.status}[/]"
            advice = f"\n[dim]{escape(finding.advice)}[/]" if finding.advice else ""
            table.add_row(status, finding.name, escape(finding.value) + advice)
        show_table(table)
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(1)
