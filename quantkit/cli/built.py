"""What came of a build, as a table or JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from quantkit.cli.output import emit_json, escape, show_table
from quantkit.core.units import format_size

if TYPE_CHECKING:
    from quantkit.building.artifact import Artifact


def show_artifacts(artifacts: "Sequence[Artifact]", folder: Path, as_json: bool) -> None:
    """What there is of each artifact: its size, and whether it runs."""
    from quantkit.verification.smoke import NOT_COMPARED

    if as_json:
        emit_json(
            {
                "folder": str(folder),
                "artifacts": {a.name: a.entry for a in artifacts},
                "was_there_already": {a.name: a.recognized for a in artifacts if not a.fresh},
            }
        )
        return
    table = Table(title=escape(str(folder)), title_justify="left")
    table.add_column("file", no_wrap=True)
    for heading in ("size", "bits per weight", "tokens/s"):
        table.add_column(heading, justify="right")
    table.add_column("smoke test")
    for artifact in artifacts:
        speed = (artifact.entry.get("smoke") or {}).get("tokens_per_second")
        verdict = artifact.verdict
        colour = {"passed": "green", "not run": "yellow", NOT_COMPARED: "yellow"}.get(
            verdict, "red"
        )
        n_files = len(artifact.layout.files)
        name = artifact.path.name if n_files == 1 else f"{artifact.name}/ ({n_files} files)"
        table.add_row(
            escape(name),
            format_size(artifact.n_bytes),
            f"{artifact.bits_per_weight:.2f}",
            f"{speed:,.0f}" if speed else "",
            f"[{colour}]{escape(verdict)}[/]" + ("" if artifact.fresh else " (was there already)"),
        )
    show_table(table)
