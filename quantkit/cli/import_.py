"""``quantkit import``: raw Mistral weights into a Hugging Face checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.cli.meters import open_meter
from quantkit.cli.output import JsonOption, console, emit_json, escape, note
from quantkit.core.errors import CheckpointError
from quantkit.core.units import format_count, format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quantkit.building.artifact import Progress
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.families.model import Decoder

OutOption = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to write; a new one.")
]
JobsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads  [default: all usable cores]")
]
MemoryOption = Annotated[
    str, typer.Option(metavar="SIZE", help="The most memory for weights in flight.")
]
ShardOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="The most bytes per file  [default: 5GB]")
]


def import_(
    raw: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Raw weights: params.json and consolidated.safetensors or .pth."
        ),
    ],
    out: OutOption,
    shard_size: ShardOption = None,
    jobs: JobsOption = None,
    max_memory: MemoryOption = "256MiB",
    as_json: JsonOption = False,
) -> None:
    """Turn raw Mistral weights into a Hugging Face checkpoint, every number as it is.

    For quants alone there is no need to: quantkit build takes the raw folder.
    """
    from quantkit.api.running import open_noted
    from quantkit.building.rewrite import require_free
    from quantkit.checkpoint.names import PARAMS

    if not (raw / PARAMS).is_file():
        raise CheckpointError(
            f"{raw} has no {PARAMS}; give the folder of raw Mistral weights, which holds it beside "
            "consolidated.safetensors or consolidated.00.pth."
        )
    require_free(out)
    memory, most_bytes = parse_size(max_memory), parse_size(shard_size) if shard_size else None
    checkpoint, model = open_noted(raw, "give raw Mistral weights", note)
    if checkpoint.read_rows is None:
        raise CheckpointError(f"{raw} is a Hugging Face checkpoint already; use it as it is.")
    write(checkpoint, model, out, {"import": 1}, None, most_bytes, jobs, memory, as_json)


def write(
    checkpoint: "Checkpoint",
    model: "Decoder",
    out: Path,
    recipe: "Mapping[str, Any]",
    card: str | None,
    shard_size: int | None,
    jobs: int | None,
    max_memory: int,
    as_json: bool,
) -> None:
    """Write a checkpoint folder with a progress bar, and say what it is."""
    from quantkit.building.rewrite import rewrite
    from quantkit.verification.machine import usable_cores

    meter = open_meter()

    def report(progress: "Progress") -> None:
        verb = "Verifying" if progress.stage == "verify" else "Writing"
        meter.show(f"{verb} {out.name}", progress.done, progress.total)

    note(f"{out.name}: {format_count(model.n_parameters)} parameters")
    try:
        n_bytes = rewrite(
            checkpoint,
            model,
            out,
            recipe=recipe,
            card=card,
            jobs=jobs or usable_cores(),
            max_memory=max_memory,
            shard_size=shard_size,
            report=report,
            say=note,
        )
    finally:
        meter.close()
    if as_json:
        emit_json(
            {
                "folder": str(out),
                "architecture": checkpoint.config["architectures"][0],
                "parameters": model.n_parameters,
                "bytes": n_bytes,
            }
        )
        return
    console.print(
        f"{escape(str(out))}: {checkpoint.config['architectures'][0]}, "
        f"{format_count(model.n_parameters)} parameters, {format_size(n_bytes)}",
        soft_wrap=True,
    )
