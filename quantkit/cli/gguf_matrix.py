"""An importance matrix from a GGUF, as the commands make it: llama.cpp runs the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.building.output import default_folder
from quantkit.cli.matrix_first import MatrixFirst
from quantkit.cli.output import note, open_meter
from quantkit.core.errors import CheckpointError

if TYPE_CHECKING:
    from quantkit.calibration.sources import TextSource
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.checkpoint.gguf import Header
    from quantkit.checkpoint.imatrix import Imatrix
    from quantkit.verification.imatrix import Gathered, GatherOptions, GatherStep


_LITTLE = 0.02  # of a vocabulary


def plan_on_gguf(
    source: "Path | Checkpoint", wish: "GatherOptions", name: str | None, out: Path | None
) -> MatrixFirst:
    """Plan an importance matrix of a GGUF that quants are built of.

    Raises:
        CheckpointError: it is not on this machine.

    """
    from quantkit.checkpoint.open import open_checkpoint

    if not isinstance(source, Path) and source.repo is not None:
        raise CheckpointError(
            f"--imatrix auto runs a GGUF in llama.cpp, which needs it on this machine; download it "
            f"with hf download {source.repo.repo_id}, and give the file."
        )
    checkpoint = open_checkpoint(source) if isinstance(source, Path) else source
    from quantkit.verification.imatrix import is_made_from, look_ahead

    return MatrixFirst(
        out or named_folder(checkpoint, name, only_gguf=True),
        is_made=lambda matrix: is_made_from(matrix, checkpoint, wish),
        stand_in=lambda matrix: foresee(checkpoint, matrix, wish.sources, wish.chunks),
        needed=lambda: look_ahead(checkpoint),
        make=lambda matrix: gather_from_gguf(checkpoint, wish, matrix),
    )


def named_folder(source: "Path | Checkpoint", name: str | None, *, only_gguf: bool) -> Path:
    """Where a build goes that names no folder."""
    from quantkit.checkpoint.open import open_checkpoint, open_model
    from quantkit.formats.gguf.metadata import describe_checkpoint

    checkpoint = open_checkpoint(source) if isinstance(source, Path) else source
    base_name = describe_checkpoint(checkpoint, open_model(checkpoint), name).base_name
    return default_folder(base_name, only_gguf=only_gguf)


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


def gguf_wish(
    text: "Sequence[TextSource]",
    chunks: int,
    context: int,
    *,
    threads: int | None = None,
    gpu_layers: int = 0,
) -> "GatherOptions":
    """What to run a GGUF over, as it was asked for."""
    from quantkit.verification.imatrix import GatherOptions

    return GatherOptions(tuple(text), chunks, context, threads, gpu_layers)


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
    source: "Checkpoint", wish: "GatherOptions", out: Path, earlier: Sequence[Path] = ()
) -> "Gathered":
    """Make an importance matrix with a progress bar, and say what is odd of text or context."""
    from quantkit.calibration.text import ON_BUILT_IN
    from quantkit.verification.imatrix import gather

    remarks = [] if wish.sources else [ON_BUILT_IN]
    meter = open_meter("chunk")

    def report(step: "GatherStep") -> None:
        while remarks:
            note(remarks.pop())
        rate = f"{step.tokens_per_second:,.0f} tokens/s" if step.tokens_per_second else ""
        meter.show("Calibrating", step.chunks, step.of, rate)

    try:
        found = gather(source, wish, out, report, earlier)
    finally:
        meter.close()
    if found.chunks < wish.chunks:
        note(f"The text fills {found.chunks} chunks of the {wish.chunks} asked for.")
    for remark in remarks_on_coverage(found.n_different, found.vocabulary):
        note(remark)
    if found.context > found.trained:
        note(
            f"The model was trained for at most {found.trained} tokens at a time; give --context "
            f"{found.trained} or less."
        )
    return found


def remarks_on_coverage(different: int, vocabulary: int) -> list[str]:
    """What to say of text that shows little of a model's vocabulary."""
    if not vocabulary or different >= _LITTLE * vocabulary:
        return []
    return [
        f"The text has {different:,} of the model's {vocabulary:,} tokens "
        f"({different / vocabulary:.1%}), and importance is weighed by those alone; give text of "
        "more kinds and languages with --text, or more --chunks."
    ]
