"""Importance matrices added up: ``build --imatrix A --imatrix B``, ``calibrate --continue``."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.api.checks import refuse_other_matrix

if TYPE_CHECKING:
    from quantkit.building.work import Work
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.checkpoint.imatrix import Imatrix
    from quantkit.families.model import Target


def foresee_joined(
    source: "Path | Checkpoint", files: Sequence[Path], context: int, path: Path
) -> "Imatrix":
    """The importance matrix that `write_joined` would write; nothing is written.

    Raises:
        ImatrixError: as `add_files` does, or a file is not of the source's model.

    """
    from quantkit.checkpoint.gathered import add_files, as_imatrix
    from quantkit.checkpoint.open import open_checkpoint, open_model

    checkpoint = open_checkpoint(source) if isinstance(source, Path) else source
    require_continuable(files, open_model(checkpoint).targets)
    return as_imatrix(path, add_files(files, context))


def write_joined(
    files: Sequence[Path], context: int, path: Path, accept: Callable[["Imatrix"], None]
) -> "Imatrix":
    """Write the sum of some files, unless it already exists.

    Args:
        files: what to add up.
        context: tokens per sequence of files that do not say it.
        path: the file to write.
        accept: called with the sum before it gets that name; what it raises leaves nothing.

    Raises:
        OutputError: another file is there.
        ImatrixError: as `add_files` does.

    """
    from quantkit.checkpoint.gathered import add_files, write_gathered
    from quantkit.checkpoint.imatrix import load_imatrix

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".partial")
    try:
        write_gathered(unfinished, add_files(files, context))
        made = replace(load_imatrix(unfinished), path=path)
        if not path.exists():
            accept(made)
            unfinished.replace(path)
        elif load_imatrix(path).sha256 != made.sha256:
            refuse_other_matrix(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return made


def require_room(work: "Work", folder: Path) -> None:
    """Refuse a folder that holds files of the same names which are built otherwise.

    Raises:
        OutputError: it does.

    """
    from quantkit.building import engine

    engine.look_ahead(work, folder)


def require_continuable(files: Sequence[Path], targets: Iterable["Target"]) -> None:
    """Refuse files that are of another model, before the new one is made.

    Raises:
        ImatrixError: one is, or cannot be read.

    """
    from quantkit.checkpoint.imatrix import load_imatrix, require_same_model

    known = list(targets)
    for file in files:
        found = load_imatrix(file)
        require_same_model(found, known, [target for target in known if target.is_linear])
        for target in known:
            found.columns_of(target)
