"""Options of the commands that search a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.completion import complete_hardware
from quantkit.cli.panels import BUDGET

BudgetOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", rich_help_panel=BUDGET, help="The most bytes of the file, such as 20GB."
    ),
]
BitsOption = Annotated[
    float | None,
    typer.Option(
        metavar="BITS", rich_help_panel=BUDGET, help="The most bits per weight, such as 4.25."
    ),
]
ForOption = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="MACHINE",
        rich_help_panel=BUDGET,
        autocompletion=complete_hardware,
        help="What it runs on: GPU and RAM, such as '24GB + 32GB', or a machine by name.",
    ),
]
MeasuredOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", rich_help_panel=BUDGET, help="Losses that quantkit measure found."
    ),
]
TypesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--types",
        metavar="TYPE,...",
        rich_help_panel=BUDGET,
        help="Choose from these types of blocks alone.",
    ),
]
NoFloorOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|all",
        rich_help_panel=BUDGET,
        help="Lift a floor of docs/recipes.md; repeat for more.",
    ),
]
