"""An importance matrix that is made on the way to quants."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli.checks import refuse_other_matrix

if TYPE_CHECKING:
    from quantkit.checkpoint.imatrix import Imatrix


@dataclass(frozen=True, slots=True)
class MatrixFirst:
    """A build that makes its importance matrix first, planned: nothing has been run or written.

    It answers what `calibrated.OnText` does, of models that something else runs. Of the matrix's
    file ``is_made`` says whether it is the one, ``stand_in`` gives what stands for it until it is
    made, ``make`` makes it; ``needed`` are the bytes that this takes on the disk.
    """

    folder: Path
    is_made: Callable[[Path], bool]
    stand_in: "Callable[[Path], Imatrix]"
    needed: Callable[[], int]
    make: Callable[[Path], object]
    wants_matrix: bool = True

    @property
    def matrix(self) -> Path:
        """Where the importance matrix is, or will be."""
        return self.folder / "imatrix.gguf"

    @property
    def has_matrix(self) -> bool:
        """Whether it is there already.

        Raises:
            OutputError: another is.

        """
        if self.is_made(self.matrix):
            return True
        refuse_other_matrix(self.matrix)
        return False

    def foresee_matrix(self) -> "Imatrix":
        """The importance matrix, or what stands for it until it is made."""
        from quantkit.checkpoint.imatrix import load_imatrix

        return load_imatrix(self.matrix) if self.has_matrix else self.stand_in(self.matrix)

    def look_ahead(self, *, hashed: bool) -> int:  # noqa: ARG002 - as OnText has it
        """The bytes that making it needs on the disk."""
        return 0 if self.has_matrix else self.needed()

    def make_matrix(self) -> "Imatrix":
        """The importance matrix, made now unless it is there already."""
        from quantkit.checkpoint.imatrix import load_imatrix

        if not self.has_matrix:
            self.make(self.matrix)
        return load_imatrix(self.matrix)
