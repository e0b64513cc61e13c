"""Models that are run over a text by PyTorch, layer by layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quantkit.api.reporter import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from quantkit.calibration.calibrate import Calibration
    from quantkit.calibration.settings import Settings, Step
    from quantkit.calibration.text import Corpus
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.families.model import Decoder, Model

_LITTLE = 0.02  # of a vocabulary


def require_running(extra: str, purpose: str) -> None:
    """Refuse to run a checkpoint without PyTorch and transformers.

    Raises:
        MissingPackageError: one of them is not installed.

    """
    from quantkit.core.packages import require

    require("torch", "PyTorch", extra, purpose)
    require("transformers", "transformers", extra, purpose)


def open_noted(
    source: "Path | Checkpoint", fix: str, note: "Callable[[str], None]"
) -> "tuple[Checkpoint, Decoder]":
    """A checkpoint that holds what its config promises, and the model that it makes.

    ``fix`` says what to do with a model whose layers quantkit does not compute; remarks are
    noted.
    """
    from quantkit.checkpoint.open import require_layers

    checkpoint, model = require_layers(source, fix)
    for remark in checkpoint.remarks:
        note(remark)
    return checkpoint, model


def remarks_on(corpus: "Corpus", asked: int) -> list[str]:
    """What to say of text that nobody chose, or of which there is less than was asked for."""
    from quantkit.calibration.text import BUILT_IN, ON_BUILT_IN, RANDOM

    remarks = []
    if corpus.names == (BUILT_IN,):
        remarks.append(ON_BUILT_IN)
    if corpus.names == (RANDOM,):
        remarks.append("Calibrating on random tokens: noise only serves to measure speed.")
    if corpus.chunks < asked:
        remarks.append(f"The text fills {corpus.chunks} chunks of the {asked} asked for.")
    if corpus.names != (RANDOM,):
        remarks += remarks_on_coverage(corpus.n_different, corpus.vocabulary)
    return remarks


def remarks_on_coverage(different: int, vocabulary: int) -> list[str]:
    """What to say of text that shows little of a model's vocabulary."""
    if not vocabulary or different >= _LITTLE * vocabulary:
        return []
    return [
        f"The text has {different:,} of the model's {vocabulary:,} tokens "
        f"({different / vocabulary:.1%}), and importance is weighed by those alone; give text of "
        "more kinds and languages with --text, or more --chunks."
    ]


def run(
    checkpoint: "Checkpoint",
    model: "Model",
    corpus: "Corpus",
    out: "Path",
    settings: "Settings",
    tell: Reporter,
    asked: int,
    earlier: "Sequence[Path]" = (),
) -> "Calibration":
    """Calibrate; what is odd of the text, of which so many chunks were asked for, is said early."""
    from quantkit.calibration.calibrate import calibrate

    remarks = remarks_on(corpus, asked)
    meter = tell.open_meter("layer")

    def report(step: "Step") -> None:
        while remarks:
            tell.note(remarks.pop(0))
        rate = f"{step.tokens_per_second:,.0f} tokens/s"
        meter.show("Calibrating", step.layers, step.n_layers, rate)

    try:
        return calibrate(checkpoint, model, corpus, out, settings, report, tell.note, earlier)
    finally:
        meter.close()


@contextmanager
def computing_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch compute with so many threads inside the ``with`` block; None: as it is."""
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
