"""Importance matrices added up: ``build --imatrix A --imatrix B``, ``calibrate --continue``."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli.checks import refuse_other_matrix

if TYPE_CHECKING:
    from quantkit.checkpoint.gathered import Gathered
    from quantkit.checkpoint.imatrix import Imatrix
    from quantkit.families.model import Target


def add_up(files: Sequence[Path], context: int) -> "Gathered":
    """What several files have gathered, together; ``context`` is that of files that say none.

    Raises:
        ImatrixError: one cannot be read, or they are of several models.

    """
    from quantkit.checkpoint.gathered import add_sums, load_sums

    return add_sums([(file, load_sums(file, context)) for file in files])


def foresee_joined(files: Sequence[Path], context: int, path: Path) -> "Imatrix":
    """The importance matrix that `write_joined` would write; nothing is written."""
    from quantkit.checkpoint.gathered import as_imatrix

    return as_imatrix(path, add_up(files, context))


def write_joined(files: Sequence[Path], context: int, path: Path) -> "Imatrix":
    """Write the sum of some files, unless it is there already.

    Raises:
        OutputError: another file is there.
        ImatrixError: as `add_up` does.

    """
    from quantkit.build.output import locked
    from quantkit.checkpoint.gathered import write_gathered
    from quantkit.checkpoint.imatrix import load_imatrix

    unfinished = path.with_name(path.name + ".partial")
    with locked(path.parent):
        write_gathered(unfinished, add_up(files, context))
        if path.exists() and load_imatrix(unfinished).sha256 == load_imatrix(path).sha256:
            unfinished.unlink()
        elif path.exists():
            unfinished.unlink()
            refuse_other_matrix(path)
        else:
            unfinished.replace(path)
    return load_imatrix(path)


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
