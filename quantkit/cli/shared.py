"""Options that mean the same in several commands, beside those of one concern."""

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.completion import complete_quant
from quantkit.cli.panels import TEXT

OnlyQuantsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--quant",
        "-q",
        metavar="NAME",
        autocompletion=complete_quant,
        help="Only these quants; repeat for more.",
    ),
]
WindowedTextOption = Annotated[
    Path | None,
    typer.Option(
        "--text",
        "-t",
        metavar="FILE",
        rich_help_panel=TEXT,
        help="Text in UTF-8  [default: Python's documentation]",
    ),
]
WindowOption = Annotated[
    int, typer.Option(min=32, metavar="N", rich_help_panel=TEXT, help="Tokens per window.")
]
