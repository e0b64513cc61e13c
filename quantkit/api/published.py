"""Models as transformers shows them, which quants for transformers are made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.api.running import require_running
from quantkit.checkpoint.checkpoint import Checkpoint, stored_view
from quantkit.checkpoint.folder import is_foreign
from quantkit.checkpoint.open import open_stored, require_layers
from quantkit.core.errors import PlanError
from quantkit.families import is_known
from quantkit.families.model import Model
from quantkit.planning.quants import Quant


@dataclass(frozen=True, slots=True)
class Published:
    """A model as transformers shows it, and its checkpoint under its own names.

    Quants for transformers are made of it where llama.cpp's converter describes what GGUFs are made
    of: of no family of ours, or in FP8, which is multiplied by its scales here.
    """

    checkpoint: Checkpoint
    model: Model

    def stored_in(self, checkpoint: Path | Checkpoint) -> "Published":
        """The same model, whose weights lie in another place now."""
        from quantkit.checkpoint.scaled import as_meant

        assert isinstance(checkpoint, Checkpoint)  # noqa: S101 - it was fetched from the Hub
        return replace(self, checkpoint=as_meant(stored_view(checkpoint)))


def as_published(source: Path | Checkpoint, quants: Sequence[Quant]) -> Published | None:
    """What quants for transformers are made of; None for a model of a family of ours.

    Args:
        source: as `quantkit.checkpoint.open.find_source` gives it.
        quants: all that are asked for.

    Raises:
        MissingPackageError: PyTorch or transformers is not installed.
        CalibrationError: transformers has no such model.
        PlanError: nothing would be quantized, or it is in FP8 and on the Hub.
        CheckpointError: the checkpoint is incomplete or damaged, or stored in quantized form.

    """
    stored = open_stored(source) if isinstance(source, Path) else source
    if not is_foreign(stored):
        require_layers(stored, "give the checkpoint that it was made from")
        return None
    formats = {quant.format for quant in quants}
    extra = "gptq" if "gptq" in formats else "bnb"
    require_running(extra, "A quant for transformers of this model")
    import torch

    from quantkit.calibration.lockstep.forward import LockstepForward
    from quantkit.calibration.lockstep.published import publish_model
    from quantkit.checkpoint.scaled import as_meant

    plain = as_meant(stored)
    if plain is stored and is_known(stored.config):
        require_layers(stored, "give the checkpoint that it was made from")
    if plain is not stored and stored.repo is not None and not _is_here(stored):
        raise PlanError(
            f"{stored.repo} is stored in FP8, which quants for transformers are made of only where "
            f"it lies on this machine; download it first: hf download {stored.repo.repo_id}."
        )
    return Published(plain, publish_model(LockstepForward(plain, torch.device("cpu")), plain))


def _is_here(checkpoint: Checkpoint) -> bool:
    return all(file.is_file() for file in checkpoint.files)
