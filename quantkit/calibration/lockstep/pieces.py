"""Which rows of which matrix of the running model a matrix of a checkpoint is."""

from collections.abc import Mapping
from dataclasses import dataclass

from quantkit.calibration.lockstep.forward import LockstepForward
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.core.errors import CalibrationError
from quantkit.families.model import Model


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a matrix: those of matrix ``number`` of a layer's ``role``."""

    layer: int
    role: str
    number: int
    start: int
    rows: int

    @property
    def where(self) -> slice:
        """Its rows."""
        return slice(self.start, self.start + self.rows)


def find_pieces(
    forward: LockstepForward, checkpoint: Checkpoint, model: Model
) -> Mapping[tuple[str, int | None], tuple[Piece, ...]]:
    """The matrices of a model's linear layers, by parameter and, among experts, number.

    Args:
        forward: what is run.
        checkpoint: whose weights.
        model: the checkpoint's, of a family of ours or as transformers shows it: matrices that
            become one parameter lie one below the other in it.

    Raises:
        CalibrationError: a parameter is not made of whole matrices.

    """
    places: dict[str, tuple[str, int | None, int]] = {}
    for parameter in forward.linears:
        count = forward.n_matrices(parameter)
        start = 0
        for names in forward.parameters.origins[parameter].sources.values():
            for number, name in enumerate(names):
                places[name] = (parameter, number if len(names) == count > 1 else None, start)
            start += checkpoint.tensors[names[0]].shape[-2]
    found: dict[tuple[str, int | None], list[Piece]] = {}
    for target in model.targets:
        if not target.is_linear or target.layer is None:
            continue
        for number, block in enumerate(target.blocks):
            parameter, expert, start = places[block.source]
            expert = block.matrix if block.matrix is not None else expert
            piece = Piece(target.layer, target.role, number, start + block.row, block.rows)
            found.setdefault((parameter, expert), []).append(piece)
    for (parameter, _), pieces in found.items():
        if sum(piece.rows for piece in pieces) != forward.parameters.shape(parameter)[-2]:
            raise CalibrationError(f"{parameter} is not made of whole matrices of the checkpoint.")
    return {
        place: tuple(sorted(some, key=lambda piece: piece.start)) for place, some in found.items()
    }
