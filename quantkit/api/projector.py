"""The vision or audio part of a model that is built, if it has one."""

from typing import TYPE_CHECKING

from quantkit.core.errors import ConverterError, PlanError

if TYPE_CHECKING:
    from quantkit.building.work import Work
    from quantkit.formats.layout import Layout


def plan_projector(work: "Work", kind: str | None, name: str | None) -> "tuple[Work, Work | None]":
    """The vision or audio part of a model, if it has one and it is wanted.

    Args:
        work: that on the model.
        kind: one of ``building.projector.KINDS``; ``NONE`` for none, None for the usual one.
        name: the model's name, instead of its own.

    Returns:
        the work on the model, which says what is missing in it, and that on its part.

    Raises:
        ConverterError: it is asked for, and cannot be described.
        PlanError: it is asked for, and there is none.

    """
    from quantkit.building.projector import DEFAULT, NONE, prepare_projector

    if kind == NONE:
        return work, None
    found = prepare_projector(work, kind or DEFAULT, name)
    if kind is not None and found.missing:
        raise ConverterError(f"{found.missing} Leave out --mmproj to build the rest.")
    if kind is not None and found.work is None:
        raise PlanError(
            f"--mmproj {kind} is for models with a vision or audio part, and "
            f"{work.checkpoint.repo or work.checkpoint.path} has none; leave it out."
        )
    return work.remarking([found.missing] if found.missing else []), found.work


def layout_of(projector: "Work | None") -> "Layout | None":
    """The one layout of a projector."""
    if projector is None:
        return None
    (layout,) = projector.layouts
    return layout
