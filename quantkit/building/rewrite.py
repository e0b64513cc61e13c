"""A checkpoint written anew, in another layout or with other tensors, by the engine.

The engine reads slabs through the checkpoint's ``read_rows`` and writes them to their places, with
its journal and its read-back. What it works in is a folder beside the result, which gets its name
last of all.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit.building import engine
from quantkit.building.artifact import Progress
from quantkit.building.output import PARTIAL, remove, require_place, sync_folder
from quantkit.building.source import identify_source, require_unchanged
from quantkit.building.work import Work, weight_reader
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.rows import open_rows
from quantkit.core.errors import CheckpointError, OutputError
from quantkit.encodings.kernel import load_kernel
from quantkit.families.model import Decoder
from quantkit.formats.plain import lay_out_plain


def rewrite(
    checkpoint: Checkpoint,
    model: Decoder,
    out: Path,
    *,
    recipe: Mapping[str, Any],
    card: str | None = None,
    jobs: int,
    max_memory: int,
    shard_size: int | None = None,
    report: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Write a checkpoint into a new folder; its size in bytes.

    Args:
        checkpoint: what to write: its tensors by the names that they will have.
        model: the checkpoint's.
        out: the folder, which must not be there yet, or be empty.
        recipe: how the tensors are made of the files, so that only the same run resumes.
        card: README.md, instead of the checkpoint's own.
        jobs: threads.
        max_memory: bytes of slabs in flight.
        shard_size: the most bytes of tensors per file.
        report: called with the progress.
        say: told what of an interrupted run is lost.

    Raises:
        OutputError: the folder is taken or cannot take the result.
        WeightsError: a weight is not finite.
        CheckpointError: a source file changed or cannot be read.
        Interrupted: Ctrl-C; what was done is kept.

    """
    require_free(out)
    out = out.absolute()
    source = identify_source(checkpoint)
    layout = lay_out_plain(
        checkpoint,
        model,
        out.name,
        card=card,
        recipe={"source": source, **recipe},
        shard_size=shard_size,
    )
    # The engine would read the files a second time for the sums of a manifest that is not kept.
    rows = replace(checkpoint, files=(), read_rows=open_rows(checkpoint))
    work = Work(
        rows,
        model,
        out.name,
        (layout,),
        load_kernel("ggml"),
        open_weights=weight_reader(rows.read_rows),
    )
    staging = out.with_name(out.name + PARTIAL)
    try:
        [artifact] = engine.build(
            work, staging, jobs=jobs, max_memory=max_memory, report=report, say=say
        )
    except BaseException:
        if staging.is_dir() and not any(staging.iterdir()):
            staging.rmdir()
        raise
    try:
        require_unchanged(checkpoint, source)
    except CheckpointError:
        remove(staging)
        raise
    artifact.path.replace(out)
    remove(staging)
    sync_folder(out.parent)
    return layout.n_bytes


def look_ahead(
    checkpoint: Checkpoint, model: Decoder, out: Path, *, max_memory: int, shard_size: int | None
) -> int:
    """The bytes that a rewritten checkpoint will have. Reads and writes nothing.

    For those who have something expensive to do before they write it.

    Args:
        checkpoint: its tensors as they will be named and shaped.
        model: the checkpoint's.
        out: the folder.
        max_memory: bytes of slabs in flight.
        shard_size: the most bytes of tensors per file.

    Raises:
        OutputError: the folder is taken.
        PlanError: the memory or a shard is too small.

    """
    require_free(out)
    engine.divide_memory(0, max_memory)
    layout = lay_out_plain(checkpoint, model, out.name, recipe={}, shard_size=shard_size)
    return layout.n_bytes


def require_free(out: Path) -> None:
    """Refuse a folder that holds something or cannot be.

    Raises:
        OutputError: it is there and not an empty folder, or cannot be made.

    """
    try:
        taken = not out.is_dir() or any(out.iterdir()) if out.exists() else False
    except OSError as error:
        raise OutputError(f"{out} cannot be read ({error.strerror}); choose another.") from None
    if taken:
        raise OutputError(f"{out} already exists; move it away or choose another folder with -o.")
    require_place(out)
