"""An importance matrix that is made on the way to quants."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.api.checks import refuse_other_matrix

if TYPE_CHECKING:
    from quantkit.checkpoint.imatrix import Imatrix


@dataclass(frozen=True, slots=True)
class MatrixFirst:
    """A build that makes its importance matrix first, planned: nothing has been run or written.

    Of the matrix's file ``is_made`` says whether it is the one, ``stand_in`` gives what stands for
    it until it is made, ``make`` makes it; ``needed`` are the bytes that this takes on the disk.
    """

    folder: Path
    is_made: Callable[[Path], bool]
    stand_in: "Callable[[Path], Imatrix]"
    needed: Callable[[], int]
    make: Callable[[Path], object]

    @property
    def matrix(self) -> Path:
        """Where the importance matrix is, or will be."""
        return self.folder / "imatrix.gguf"

    @property
    def lacks_matrix(self) -> bool:
        """Whether it is still to be made.

        Raises:
            OutputError: another is there.

        """
        if self.is_made(self.matrix):
            return False
        refuse_other_matrix(self.matrix)
        return True

    def foresee_matrix(self) -> "Imatrix":
        """The importance matrix, or what stands for it until it is made."""
        from quantkit.checkpoint.imatrix import load_imatrix

        return self.stand_in(self.matrix) if self.lacks_matrix else load_imatrix(self.matrix)

    def look_ahead(self, *, hashed: bool) -> int:  # noqa: ARG002 - as OnText has it
        """The bytes that making it needs on the disk."""
        return self.needed() if self.lacks_matrix else 0

    def make_matrix(self) -> "Imatrix":
        """The importance matrix, made now unless it already exists."""
        from quantkit.checkpoint.imatrix import load_imatrix

        if self.lacks_matrix:
            self.make(self.matrix)
        return load_imatrix(self.matrix)
