"""An importance matrix from a GGUF: llama.cpp runs the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.api.matrix_first import MatrixFirst
from quantkit.api.reporter import Reporter
from quantkit.api.running import remarks_on_coverage
from quantkit.core.errors import CheckpointError

if TYPE_CHECKING:
    from quantkit.api.order import Order
    from quantkit.calibration.sources import TextSource
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.checkpoint.gguf import Header
    from quantkit.checkpoint.imatrix import Imatrix
    from quantkit.verification.imatrix import Gathered, GatherOptions, GatherStep


def plan_on_gguf(order: "Order") -> MatrixFirst:
    """Plan an importance matrix of a GGUF that quants are built of.

    Raises:
        CheckpointError: it is not on this machine.

    """
    from quantkit.checkpoint.open import open_checkpoint
    from quantkit.verification.imatrix import GatherOptions, is_made_from, look_ahead

    source, text = order.source, order.options.text
    if not isinstance(source, Path) and source.repo is not None:
        raise CheckpointError(
            f"--imatrix auto runs a GGUF in llama.cpp, which needs it on this machine; download it "
            f"with hf download {source.repo.repo_id}, and give the file."
        )
    checkpoint = open_checkpoint(source) if isinstance(source, Path) else source
    threads = order.options.resources.threads
    wish = GatherOptions(text.sources, text.chunks, text.context, threads)
    return MatrixFirst(
        order.folder,
        is_made=lambda matrix: is_made_from(matrix, checkpoint, wish),
        stand_in=lambda matrix: foresee(checkpoint, matrix, wish.sources, wish.chunks),
        needed=lambda: look_ahead(checkpoint),
        make=lambda matrix: gather_from_gguf(checkpoint, wish, matrix, order.tell),
    )


def foresee(
    source: "Path | Checkpoint", matrix: Path, text: "Sequence[TextSource]", chunks: int
) -> "Imatrix":
    """What stands for the matrix of ``--imatrix auto``: no text is read, and nothing is run.

    Raises:
        CheckpointError, GGUFError: as `open_checkpoint` does.

    """
    from quantkit.calibration.text import BUILT_IN
    from quantkit.checkpoint.imatrix import stand_in
    from quantkit.checkpoint.open import open_checkpoint, open_model

    checkpoint = open_checkpoint(source) if isinstance(source, Path) else source
    names = tuple(source.name for source in text) or (BUILT_IN,)
    return stand_in(matrix, open_model(checkpoint).targets, chunks, names)


def open_gguf_here(path: Path) -> "Checkpoint":
    """A GGUF that llama.cpp can run, which is one on this machine.

    Raises:
        CheckpointError: it is a name on the Hub, or not there at all.
        GGUFError: it breaks the format's rules.

    """
    from quantkit.checkpoint.names import parse_hub_name
    from quantkit.checkpoint.open import open_checkpoint

    hub = None if path.exists() or path.parent.is_dir() else parse_hub_name(str(path))
    if hub is not None:
        raise CheckpointError(
            f"{path} is not on this machine, and llama.cpp runs only what is; download it with "
            f"hf download {hub.repo_id} {hub.file}, and give the file."
        )
    return open_checkpoint(path)


def experts_in(header: "Header") -> int:
    """How many experts a layer of a GGUF has; 0 for a model that is no mixture."""
    metadata = header.metadata
    return int(metadata.get(f"{metadata.get('general.architecture')}.expert_count", 0))


def gather_from_gguf(
    source: "Checkpoint",
    wish: "GatherOptions",
    out: Path,
    tell: Reporter,
    earlier: Sequence[Path] = (),
) -> "Gathered":
    """Make an importance matrix, and say what is odd of text or context."""
    from quantkit.calibration.text import ON_BUILT_IN
    from quantkit.verification.imatrix import gather

    remarks = [] if wish.sources else [ON_BUILT_IN]
    meter = tell.open_meter("chunk")

    def report(step: "GatherStep") -> None:
        while remarks:
            tell.note(remarks.pop())
        rate = f"{step.tokens_per_second:,.0f} tokens/s" if step.tokens_per_second else ""
        meter.show("Calibrating", step.chunks, step.of, rate)

    try:
        found = gather(source, wish, out, report, earlier)
    finally:
        meter.close()
    if found.chunks < wish.chunks:
        tell.note(f"The text fills {found.chunks} chunks of the {wish.chunks} asked for.")
    for remark in remarks_on_coverage(found.n_different, found.vocabulary):
        tell.note(remark)
    if found.context > found.trained:
        tell.note(
            f"The model was trained for at most {found.trained} tokens at a time; give --context "
            f"{found.trained} or less."
        )
    return found
