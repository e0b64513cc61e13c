"""Options of commands that llama.cpp's converter may have to describe a checkpoint for."""

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.panels import SOURCE

LlamaCppOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        rich_help_panel=SOURCE,
        help="Your own llama.cpp, whose converter knows what the pinned one does not.",
    ),
]
MtpOption = Annotated[
    bool | None,
    typer.Option(
        "--mtp/--no-mtp",
        rich_help_panel=SOURCE,
        help="Layers that predict further tokens  [default: as llama.cpp's converter does]",
    ),
]
