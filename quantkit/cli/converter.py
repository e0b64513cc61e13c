"""Options of commands that llama.cpp's converter may have to describe a checkpoint for."""

from pathlib import Path
from typing import Annotated

import typer

LlamaCppOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Your own llama.cpp, whose converter knows what the pinned one does not.",
    ),
]
MtpOption = Annotated[
    bool | None,
    typer.Option(
        "--mtp/--no-mtp",
        help="Layers that predict further tokens  [default: as llama.cpp's converter does]",
    ),
]
