"""Options of the candidates of a search."""

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.panels import BUDGET

CompareOption = Annotated[
    bool | None,
    typer.Option(
        "--compare/--no-compare",
        rich_help_panel=BUDGET,
        help="Measure candidates of a search, build the best  [default: where the model runs]",
    ),
]
CompareTextOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=BUDGET,
        help="Text to measure candidates on, UTF-8  [default: built in]",
    ),
]
