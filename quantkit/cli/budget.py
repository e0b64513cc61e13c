"""Options of the commands that search a recipe."""

from pathlib import Path
from typing import Annotated

import typer

BudgetOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="The most bytes of the file, such as 20GB.")
]
BitsOption = Annotated[
    float | None, typer.Option(metavar="BITS", help="The most bits per weight, such as 4.25.")
]
ForOption = Annotated[
    str | None,
    typer.Option("--for", metavar="MACHINE", help="What it runs on, such as '24GB + 32GB'."),
]
MeasuredOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Losses that were measured of this model.")
]
TypesOption = Annotated[
    list[str] | None,
    typer.Option("--types", metavar="TYPE,...", help="Choose from these types of blocks alone."),
]
NoFloorOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME|all", help="Lift a floor of docs/recipes.md; repeat for more."),
]
