"""``quantkit calibrate``: an importance matrix, and where the router sends tokens."""

from enum import StrEnum
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from quantkit.cli.meters import showing
from quantkit.cli.needs import typed
from quantkit.cli.output import (
    GpuLayersOption,
    JsonOption,
    OverwriteOption,
    console,
    emit_json,
    escape,
    note,
    show_table,
)
from quantkit.cli.panels import CALIBRATION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quantkit.api.calibrate import Calibrated
    from quantkit.calibration.routing import Routing

_STARVED_SHARE = 0.25  # of an even share, below which an expert counts as starved


class Device(StrEnum):
    """Where a model is run."""

    CPU = "cpu"
    CUDA = "cuda"


TextOption = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        "-t",
        metavar="FILE[:WEIGHT]",
        rich_help_panel=CALIBRATION,
        help="Text to run over; repeat for more  [default: built in]",
    ),
]
ChatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--chat",
        metavar="FILE.jsonl[:WEIGHT]",
        rich_help_panel=CALIBRATION,
        help="Conversations to run over, by the model's own chat template.",
    ),
]
ChunksOption = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", rich_help_panel=CALIBRATION, help="The most sequences of text."
    ),
]
ContextOption = Annotated[
    int,
    typer.Option(min=16, metavar="N", rich_help_panel=CALIBRATION, help="Tokens per sequence."),
]
DeviceOption = Annotated[
    Device,
    typer.Option(
        metavar="|".join(Device), rich_help_panel=CALIBRATION, help="Where the model is run."
    ),
]


def calibrate(
    command: typer.Context,
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A checkpoint: a folder or HUB_ID[@REVISION]; or a GGUF."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")
    ] = Path("imatrix.gguf"),
    text: TextOption = None,
    chat: ChatOption = None,
    chunks: ChunksOption = 128,
    context: ContextOption = 512,
    device: DeviceOption = Device.CPU,
    gpu_layers: GpuLayersOption = 0,
    min_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=CALIBRATION,
            help="Experts with fewer tokens borrow some; 0 for never.",
        ),
    ] = 256,
    max_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="The most memory for activations; more go to disk.")
    ] = "4GiB",
    random_tokens: Annotated[
        bool,
        typer.Option(
            "--random-tokens",
            rich_help_panel=CALIBRATION,
            help="No text: noise, for measuring speed.",
        ),
    ] = False,
    earlier: Annotated[
        list[Path] | None,
        typer.Option("--continue", metavar="FILE", help="Add to this matrix; repeat for more."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw where the tokens of a MoE went.")
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a model over text and write an importance matrix.

    A checkpoint is run by PyTorch, one decoder layer at a time, in the memory of a layer. A GGUF is
    run by llama.cpp, whatever its architecture. Stopped or killed, the same command goes on.
    """
    from quantkit.api.calibrate import calibrate as run
    from quantkit.api.options import CalibrateOptions, TextOptions
    from quantkit.core.units import parse_size

    options = CalibrateOptions(
        TextOptions(tuple(text or ()), tuple(chat or ()), chunks, context, device.value),
        gpu_layers,
        min_tokens,
        parse_size(max_memory),
        random_tokens,
        tuple(earlier or ()),
        plot,
    )
    with showing() as progress:
        made = run(
            checkpoint,
            out,
            options,
            overwrite=overwrite,
            progress=progress,
            note=note,
            given=typed(command),
        )
    _show(made, as_json)


def _show(made: "Calibrated", as_json: bool) -> None:
    """Where the tokens went, and what the matrix was made from."""
    rows = [_row(layer, one) for layer, one in made.routing.items()]
    if as_json:
        emit_json(
            {
                "file": str(made.path),
                "chunks": made.chunks,
                "chunks_in_all": made.total,
                "context": made.context,
                "text": made.text,
                "perplexity": made.perplexity,
                f"resumed_{made.unit}": made.resumed,
                "routing": rows,
            }
        )
        return
    if rows:
        show_table(_table(rows))
        borrowed = sum(any(row["borrowed"]) for row in rows)
        starved = sum(len(row["starved"]) for row in rows)
        told = f"{starved} starved experts (under a quarter of an even share)."
        if borrowed:
            told += (
                f" In {borrowed} layers, experts under {made.min_tokens} tokens borrowed others', "
                "at a quarter of their weight."
            )
        elif made.min_tokens:
            told += f" No expert had under {made.min_tokens} tokens."
        console.print(told, soft_wrap=True)
    told = f"{escape(str(made.path))}: {made.chunks} chunks of {made.context} tokens"
    if made.perplexity is not None:
        told += f", perplexity {made.perplexity:.4f}"
    if made.total != made.chunks:
        told += f"; with what it continues {made.total} chunks"
    console.print(told, soft_wrap=True)


def _row(layer: int, routing: "Routing") -> dict[str, Any]:
    even = mean(routing.tokens)
    return {
        "layer": layer,
        "tokens": list(routing.tokens),
        "borrowed": list(routing.borrowed),
        "imbalance": max(routing.tokens) / even,
        "starved": [e for e, n in enumerate(routing.tokens) if n < _STARVED_SHARE * even],
    }


def _table(rows: "Sequence[dict[str, Any]]") -> Table:
    table = Table(title="Tokens per expert", title_justify="left")
    table.add_column("layer", justify="right")
    for expert in range(len(rows[0]["tokens"])):
        table.add_column(str(expert), justify="right")
    table.add_column("most / mean", justify="right")
    table.add_column("starved", justify="right")
    for row in rows:
        cells = (
            f"{count:,}" + (f" +{extra:,}" if extra else "")
            for count, extra in zip(row["tokens"], row["borrowed"], strict=True)
        )
        starved = ", ".join(map(str, row["starved"]))
        table.add_row(str(row["layer"]), *cells, f"{row['imbalance']:.2f}", starved)
    return table
