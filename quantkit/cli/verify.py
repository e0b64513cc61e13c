"""``quantkit verify``: whether this is what was built."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from quantkit.cli.meters import showing
from quantkit.cli.output import JsonOption, console, emit_json, escape, note, show_table
from quantkit.core.units import counted, format_size

if TYPE_CHECKING:
    from quantkit.publishing.verify import Verification


def verify(
    place: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|REPO",
            help="A build, a download, or NAMESPACE/NAME[@REVISION] on the Hub.",
        ),
    ],
    key: Annotated[
        Path | None, typer.Option(metavar="PUBLIC.pem", help="The key it must be signed with.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check sizes, sha256, manifest and signature of a folder or a repository on the Hub.

    Of a repository only small files are downloaded; the Hub's own sha256 of the others is compared.
    """
    from quantkit.api.verify import verify as check

    with showing() as progress:
        found = check(place, key=key, progress=progress)
    if as_json:
        emit_json(asdict(found) | {"ok": found.ok})
    else:
        _show(found)
    found.raise_if_failed()


def _show(found: "Verification") -> None:
    table = Table(title=escape(found.place), title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("sha256", no_wrap=True)
    table.add_column("")
    for file in found.files:
        verdict = f"[red]{escape(file.fault)}[/]" if file.fault else "[green]as built[/]"
        size = format_size(file.n_bytes) if file.n_bytes is not None else ""
        table.add_row(escape(file.path), size, file.sha256[:12], verdict)
    show_table(table)
    how = "every byte read" if found.read else "sha256 as the Hub lists them"
    signature = {
        "none": "not signed",
        "not checked": "signed, not checked: give --key",
        "good": "signature good",
    }
    if not found.faults:
        console.print(
            f"[green]verified[/]: {counted(len(found.artifacts), 'artifact')}, {how}; "
            f"{signature[found.signature]}"
        )
    for path in found.unlisted:
        note(f"{path} is not in the manifest; nothing is known of it.")
