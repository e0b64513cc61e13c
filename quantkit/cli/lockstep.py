"""Calibration of a checkpoint that quantkit does not describe by itself: transformers runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli.checks import refuse_other_matrix
from quantkit.cli.gguf_matrix import experts_in, named_folder
from quantkit.cli.joined import require_continuable
from quantkit.cli.output import note
from quantkit.core.errors import PlanError

if TYPE_CHECKING:
    from quantkit.calibrate.calibrate import Calibration, Settings
    from quantkit.calibrate.sources import Source
    from quantkit.calibrate.text import Corpus
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.checkpoint.imatrix import Imatrix
    from quantkit.cli.calibrated import Text


@dataclass(frozen=True, slots=True)
class CorpusWish:
    """What to run a model over: files, or the built-in text, or noise."""

    sources: "Sequence[Source]"
    chunks: int
    context: int
    noise: bool


@dataclass(frozen=True, slots=True)
class OnDescribed:
    """A described checkpoint whose importance matrix is made first, planned: nothing has been run.

    It answers what `calibrated.OnText` does for a model whose layers quantkit itself computes.
    """

    checkpoint: "Checkpoint"
    corpus: "Corpus"
    settings: "Settings"
    asked: int
    folder: Path
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
        from quantkit.calibrate.lockstep.calibrate import is_made_from

        if is_made_from(self.matrix, self.checkpoint, self.corpus, self.settings):
            return True
        refuse_other_matrix(self.matrix)
        return False

    def foresee_matrix(self) -> "Imatrix":
        """The importance matrix, or what stands for it until it is made."""
        from quantkit.checkpoint.imatrix import load_imatrix, stand_in
        from quantkit.checkpoint.open import open_model

        if self.has_matrix:
            return load_imatrix(self.matrix)
        targets = open_model(self.checkpoint).targets
        return stand_in(self.matrix, targets, self.corpus.chunks, self.corpus.names)

    def look_ahead(self, *, hashed: bool) -> int:  # noqa: ARG002 - as OnText has it
        """The bytes that making it needs on the disk."""
        from quantkit.calibrate.lockstep.calibrate import look_ahead

        return 0 if self.has_matrix else look_ahead(self.checkpoint, self.corpus, self.settings)

    def make_matrix(self) -> "Imatrix":
        """The importance matrix, made now unless it is there already."""
        from quantkit.calibrate.lockstep.calibrate import calibrate
        from quantkit.checkpoint.imatrix import load_imatrix
        from quantkit.checkpoint.open import open_model
        from quantkit.cli.calibrate import metered, remarks_on

        if not self.has_matrix:
            model = open_model(self.checkpoint)
            metered(
                lambda report: calibrate(
                    self.checkpoint, model, self.corpus, self.matrix, self.settings, report, note
                ),
                remarks_on(self.corpus, self.asked),
            )
        return load_imatrix(self.matrix)


def plan_on_described(
    checkpoint: "Checkpoint", text: "Text", name: str | None, out: Path | None
) -> OnDescribed:
    """Plan an importance matrix of a described checkpoint that quants are built of.

    Raises:
        MissingPackageError: PyTorch or transformers is not installed.
        CalibrationError: transformers has no such model, or the text cannot be used.

    """
    from quantkit.core.packages import require

    require("torch", "PyTorch", "calibrate", "--imatrix auto")
    require("transformers", "transformers", "transformers", "--imatrix auto of such a model")
    from quantkit.calibrate.calibrate import Settings
    from quantkit.calibrate.lockstep.calibrate import stand_ready
    from quantkit.calibrate.text import make_corpus
    from quantkit.checkpoint.checkpoint import stored_view

    settings = Settings(text.device.value, fewest_tokens=0)
    stand_ready(stored_view(checkpoint), text.context, settings)
    corpus = make_corpus(checkpoint, text.sources, text.chunks, text.context)
    folder = out or named_folder(checkpoint, name, only_gguf=True)
    return OnDescribed(checkpoint, corpus, settings, text.chunks, folder)


def calibrate_described(
    stored: "Checkpoint",
    wish: CorpusWish,
    out: Path,
    settings: "Settings",
    earlier: Sequence[Path],
    *,
    draws: bool,
) -> "Calibration":
    """Calibrate with a progress bar; ``draws`` says whether it is to be drawn where tokens went.

    Raises:
        PlanError: there is nothing to draw.
        MissingPackageError: transformers is not installed.
        CalibrationError, CheckpointError, ConverterError, OutputError: as `calibrate` of lockstep
            and `described` do.

    """
    from quantkit.core.packages import require

    require("transformers", "transformers", "transformers", "Calibrating such a model")
    from quantkit.calibrate.lockstep.calibrate import calibrate, stand_ready
    from quantkit.checkpoint.converter.describe import Wish
    from quantkit.checkpoint.open import described, open_model
    from quantkit.cli.calibrate import metered, remarks_on

    stand_ready(stored, wish.context, settings)
    checkpoint = described(stored, Wish())
    assert checkpoint.description is not None  # noqa: S101 - it is foreign
    if draws and not experts_in(checkpoint.description.header):
        raise PlanError(
            "--plot draws where the tokens of a MoE went; this model has no experts; leave it out."
        )
    for remark in checkpoint.remarks:
        note(remark)
    model = open_model(checkpoint)
    require_continuable(earlier, model.targets)
    corpus = _make_corpus(checkpoint, wish)
    return metered(
        lambda report: calibrate(checkpoint, model, corpus, out, settings, report, note, earlier),
        remarks_on(corpus, wish.chunks),
    )


def _make_corpus(checkpoint: "Checkpoint", wish: CorpusWish) -> "Corpus":
    from quantkit.calibrate.text import make_corpus, random_corpus

    if not wish.noise:
        return make_corpus(checkpoint, wish.sources, wish.chunks, wish.context)
    assert checkpoint.description is not None  # noqa: S101 - it is described
    (table,) = (t for t in checkpoint.description.targets if t.name == "token_embd.weight")
    return random_corpus(table.shape[0], wish.chunks, wish.context)
