"""``quantkit build --mmproj``: the vision or audio part of a model, if it has one."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.core.errors import ConverterError, PlanError

if TYPE_CHECKING:
    from quantkit.building.work import Work
    from quantkit.formats.layout import Layout


class ProjectorType(StrEnum):
    """The names of ``build.projector.KINDS``, and none."""

    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    NONE = "none"


MmprojOption = Annotated[
    ProjectorType | None,
    typer.Option(help="Type of the vision or audio part, a file of its own  [default: f16]"),
]


def plan_projector(
    work: "Work", kind: ProjectorType | None, name: str | None
) -> "tuple[Work, Work | None]":
    """The vision or audio part of a model, if it has one and it is wanted.

    Returns:
        the work on the model, which says what is missing in it, and that on its part.

    Raises:
        ConverterError: it is asked for, and cannot be described.
        PlanError: it is asked for, and there is none.

    """
    from quantkit.building.projector import DEFAULT, prepare_projector

    if kind is ProjectorType.NONE:
        return work, None
    found = prepare_projector(work, kind.value if kind else DEFAULT, name)
    if kind is not None and found.missing:
        raise ConverterError(f"{found.missing} Leave out --mmproj to build the rest.")
    if kind is not None and found.work is None:
        raise PlanError(
            f"--mmproj {kind.value} is for models with a vision or audio part, and "
            f"{work.checkpoint.repo or work.checkpoint.path} has none; leave it out."
        )
    return work.remarking([found.missing] if found.missing else []), found.work


def layout_of(projector: "Work | None") -> "Layout | None":
    """The one layout of a projector."""
    if projector is None:
        return None
    (layout,) = projector.layouts
    return layout
