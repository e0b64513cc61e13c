"""``quantkit publish``: a finished build as a repository on the Hub."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from quantkit.cli.needs import PUBLISH, PublishWish, refuse_idle
from quantkit.cli.output import JsonOption, console, emit_json, escape, note, open_meter, show_table
from quantkit.core.errors import PublishError
from quantkit.core.units import format_size

if TYPE_CHECKING:
    from quantkit.publishing.release import Published, Release


class Format(StrEnum):
    """The keys of ``publish.layout.FAMILIES``, which are not imported to parse options."""

    GGUF = "gguf"
    GPTQ = "gptq"
    BNB = "bnb"


def publish(
    command: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A folder that quantkit build wrote.")],
    repo: Annotated[str, typer.Option(metavar="NAMESPACE/NAME", help="Where to publish.")],
    format_: Annotated[
        Format | None, typer.Option("--format", help="Which of a build's formats goes there.")
    ] = None,
    quant: Annotated[
        list[str] | None, typer.Option("--quant", "-q", help="Only these quants; repeat for more.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="DIR|HUB_ID", help="What was built: for its card, license, commit."),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="HUB_ID", help="Its name on the Hub, if it is a folder.")
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="The license, if the model names none."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="From quantkit compare --json  [default: DIR/compare.json]"
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the commits.")] = None,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign with a private key (PEM).")
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
    from quantkit.publishing.earlier import find_earlier
    from quantkit.publishing.release import PublishOptions, prepare
    from quantkit.publishing.release import publish as send

    refuse_idle(command, PUBLISH, PublishWish(card_only))
    wishes = PublishOptions(
        family=format_.value if format_ else None,
        quants=tuple(quant or ()),
        checkpoint=checkpoint,
        base_model=base_model,
        license=license_,
        comparison=compare,
        key=sign,
        force=force,
    )
    if message is not None and not message.strip():
        raise PublishError("--message is empty; say what this is, or leave it out.")
    meter = open_meter()
    try:
        release = prepare(
            folder,
            repo,
            wishes,
            hashed=not (dry_run or card_only),
            look=(lambda _repo_id: None) if dry_run else find_earlier,
            report=lambda _what, done, total: meter.show("Checking", done, total),
        )
        for remark in release.notes:
            note(remark)
        published = None
        if not dry_run:
            published = send(
                release,
                private=private,
                card_only=card_only,
                message=message,
                report=lambda path, done, total: meter.show(f"Sending {path}", done, total),
            )
    finally:
        meter.close()
    if as_json:
        _emit(release, published, private)
    elif dry_run and card_only:
        console.print(release.card, markup=False, soft_wrap=True, end="")
    else:
        _show(release, published, private)


def _emit(release: "Release", published: "Published | None", private: bool) -> None:
    sent = set(published.sent) if published else set()
    emit_json(
        {
            "repo": release.repo_id,
            "private": private,
            "dry_run": published is None,
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


def _show(release: "Release", published: "Published | None", private: bool) -> None:
    kind = "private " if private else ""
    title = f"{kind}{release.repo_id}" if published else f"Would go to {kind}{release.repo_id}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("sha256", no_wrap=True)
    table.add_column("sent" if published else "from", overflow="fold")
    total = 0
    for upload in release.uploads:
        if published:
            last = "sent" if upload.path in published.sent else "was there already"
        else:
            last = str(upload.content) if isinstance(upload.content, Path) else "made"
        total += upload.n_bytes
        size = format_size(upload.n_bytes)
        table.add_row(escape(upload.path), size, upload.sha256[:12], escape(last))
    show_table(table)
    commits = f"{len(release.uploads)} files, {format_size(total)}"
    if published:
        from huggingface_hub.constants import ENDPOINT

        console.print(f"{commits}, all there: {ENDPOINT}/{release.repo_id}")
    else:
        console.print(
            f"{commits}, in this order, in {len(release.groups)} commits. Nothing was sent."
        )
