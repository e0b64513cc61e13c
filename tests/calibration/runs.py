"""Calibration runs as tests want them."""

from pathlib import Path
from typing import Any

from quantkit.calibration.calibrate import Calibration, calibrate
from quantkit.calibration.settings import Settings
from quantkit.calibration.sources import TextSource
from quantkit.calibration.text import Corpus, make_corpus
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.open import open_checkpoint
from quantkit.families import find_family
from quantkit.families.model import Decoder
from tests.checkpoints.text import training_text

TINY = Path(__file__).parents[1] / "checkpoints"


def opened(folder: Path) -> tuple[Checkpoint, Decoder]:
    checkpoint = open_checkpoint(folder)
    return checkpoint, find_family(checkpoint.config).describe(
        checkpoint.config, checkpoint.tensors
    )


def text_file(folder: Path) -> Path:
    """The English that the tiny checkpoints were trained on."""
    path = folder / "training.txt"
    path.write_text(training_text(), encoding="utf-8")
    return path


def corpus_of(checkpoint: Checkpoint, folder: Path, chunks: int, context: int) -> Corpus:
    return make_corpus(checkpoint, [TextSource(text_file(folder))], chunks, context)


def calibrated(
    model_folder: Path, folder: Path, *, chunks: int = 4, context: int = 128, **settings: Any
) -> Calibration:
    """Calibrate on the training text into ``folder / imatrix.gguf``."""
    checkpoint, model = opened(model_folder)
    corpus = corpus_of(checkpoint, folder, chunks, context)
    return calibrate(checkpoint, model, corpus, folder / "imatrix.gguf", Settings(**settings))
