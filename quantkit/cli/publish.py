"""``quantkit publish``: a finished build as a repository on the Hub."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from quantkit.cli.meters import showing
from quantkit.cli.output import JsonOption, console, emit_json, escape, note, show_table
from quantkit.cli.panels import HUB
from quantkit.cli.shared import OnlyQuantsOption
from quantkit.core.units import counted, format_size

if TYPE_CHECKING:
    from quantkit.publishing.release import Published


class Format(StrEnum):
    """The keys of ``publish.layout.FAMILIES``, which are not imported to parse options."""

    GGUF = "gguf"
    GPTQ = "gptq"
    BNB = "bnb"


def publish(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder that quantkit build wrote.")
    ],
    repo: Annotated[str, typer.Option(metavar="NAMESPACE/NAME", help="Where to publish.")],
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format", metavar="|".join(Format), help="Which of a build's formats goes there."
        ),
    ] = None,
    quant: OnlyQuantsOption = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|HUB_ID",
            rich_help_panel=HUB,
            help="What was built: for its card, license, commit.",
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="HUB_ID",
            rich_help_panel=HUB,
            help="Its name on the Hub, if it is a folder.",
        ),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            rich_help_panel=HUB,
            help="The license, if the model names none.",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="From quantkit compare --json  [default: FOLDER/compare.json]"
        ),
    ] = None,
    private: Annotated[
        bool,
        typer.Option("--private", rich_help_panel=HUB, help="Make the repository private."),
    ] = False,
    message: Annotated[
        str | None,
        typer.Option(metavar="TEXT", rich_help_panel=HUB, help="The commits' message."),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(metavar="KEY.pem", rich_help_panel=HUB, help="Sign with a private key."),
    ] = None,
    card_only: Annotated[
        bool, typer.Option("--card-only", help="Send the card; the files must be there.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go where; with --card-only the card.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Publish without a passing smoke test; the card says so."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a build on the Hugging Face Hub: card, checksums and all, the card last.

    Every file is read and compared with the manifest first. Stopped or killed, the same command
    goes on where it was; what the Hub has already is not sent again.
    """
    from quantkit.api.publish import publish as send
    from quantkit.publishing.release import PublishOptions

    options = PublishOptions(
        family=format_.value if format_ else None,
        quants=tuple(quant or ()),
        checkpoint=checkpoint,
        base_model=base_model,
        license=license_,
        comparison=compare,
        key=sign,
        force=force,
    )
    with showing() as progress:
        found = send(
            folder,
            repo,
            options,
            private=private,
            message=message,
            card_only=card_only,
            dry_run=dry_run,
            progress=progress,
            note=note,
        )
    if as_json:
        _emit(found, private)
    elif dry_run and card_only:
        console.print(found.release.card, markup=False, soft_wrap=True, end="")
    else:
        _show(found, private)


def _emit(published: "Published", private: bool) -> None:
    release, sent = published.release, set(published.sent)
    emit_json(
        {
            "repo": release.repo_id,
            "private": private,
            "dry_run": published.dry_run,
            "files": [
                {
                    "path": upload.path,
                    "from": str(upload.content) if isinstance(upload.content, Path) else None,
                    "bytes": upload.n_bytes,
                    "sha256": upload.sha256,
                    "sent": upload.path in sent,
                }
                for upload in release.uploads
            ],
            "notes": release.notes,
        }
    )


def _show(published: "Published", private: bool) -> None:
    release, sent = published.release, not published.dry_run
    kind = "private " if private else ""
    title = f"{kind}{release.repo_id}" if sent else f"Would go to {kind}{release.repo_id}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("sha256", no_wrap=True)
    table.add_column("sent" if sent else "from", overflow="fold")
    total = 0
    for upload in release.uploads:
        if sent:
            last = "sent" if upload.path in published.sent else "was there already"
        else:
            last = str(upload.content) if isinstance(upload.content, Path) else "made"
        total += upload.n_bytes
        size = format_size(upload.n_bytes)
        table.add_row(escape(upload.path), size, upload.sha256[:12], escape(last))
    show_table(table)
    files = f"{counted(len(release.uploads), 'file')}, {format_size(total)}"
    if sent:
        from huggingface_hub.constants import ENDPOINT

        console.print(f"{files}, all there: {ENDPOINT}/{release.repo_id}")
    else:
        console.print(
            f"{files}, in this order, in {counted(len(release.groups), 'commit')}. "
            "Nothing was sent."
        )
