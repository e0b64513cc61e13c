"""Calibration of a checkpoint that quantkit does not describe by itself: transformers runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli.gguf_matrix import experts_in, named_folder
from quantkit.cli.joined import require_continuable
from quantkit.cli.matrix_first import MatrixFirst
from quantkit.cli.output import note
from quantkit.core.errors import PlanError

if TYPE_CHECKING:
    from quantkit.calibrate.calibrate import Calibration, Settings
    from quantkit.calibrate.sources import Source
    from quantkit.calibrate.text import Corpus
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.cli.calibrated import Text


@dataclass(frozen=True, slots=True)
class CorpusWish:
    """What to run a model over: files, or the built-in text, or noise."""

    sources: "Sequence[Source]"
    chunks: int
    context: int
    noise: bool


def plan_on_described(
    checkpoint: "Checkpoint", text: "Text", name: str | None, out: Path | None
) -> MatrixFirst:
    """Plan an importance matrix of a described checkpoint that quants are built of.

    Raises:
        MissingPackageError: PyTorch or transformers is not installed.
        CalibrationError: transformers has no such model, or the text cannot be used.

    """
    from quantkit.core.packages import require

    require("torch", "PyTorch", "calibrate", "--imatrix auto")
    require("transformers", "transformers", "transformers", "--imatrix auto of such a model")
    from quantkit.calibrate.calibrate import Settings
    from quantkit.calibrate.lockstep.calibrate import (
        calibrate,
        is_made_from,
        look_ahead,
        stand_ready,
    )
    from quantkit.calibrate.text import make_corpus
    from quantkit.checkpoint.checkpoint import stored_view
    from quantkit.checkpoint.imatrix import stand_in
    from quantkit.checkpoint.open import open_model
    from quantkit.cli.calibrate import metered, remarks_on

    settings = Settings(text.device.value, fewest_tokens=0)
    stand_ready(stored_view(checkpoint), text.context, settings)
    corpus = make_corpus(checkpoint, text.sources, text.chunks, text.context)
    model = open_model(checkpoint)
    return MatrixFirst(
        out or named_folder(checkpoint, name, only_gguf=True),
        is_made=lambda matrix: is_made_from(matrix, checkpoint, corpus, settings),
        stand_in=lambda matrix: stand_in(matrix, model.targets, corpus.chunks, corpus.names),
        needed=lambda: look_ahead(checkpoint, corpus, settings),
        make=lambda matrix: metered(
            lambda report: calibrate(checkpoint, model, corpus, matrix, settings, report, note),
            remarks_on(corpus, text.chunks),
        ),
    )


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
