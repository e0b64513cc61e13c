"""``quantkit build --mmproj``: the option."""

from enum import StrEnum
from typing import Annotated

import typer

from quantkit.cli.panels import SOURCE


class ProjectorType(StrEnum):
    """The names of ``building.projector.KINDS``, and none."""

    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    NONE = "none"


MmprojOption = Annotated[
    ProjectorType | None,
    typer.Option(
        metavar="|".join(ProjectorType),
        rich_help_panel=SOURCE,
        help="Type of the vision or audio part, a file of its own  [default: f16]",
    ),
]
