"""Checkpoints from the Hub: keeping them, fetching them, whether this machine can take them."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.api.reporter import Reporter
from quantkit.core.errors import PlanError
from quantkit.core.units import format_size

if TYPE_CHECKING:
    from quantkit.building.kept import KeptSource
    from quantkit.building.work import Work
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.checkpoint.converter.wish import ConverterOptions


def keep_in(folder: Path | None, source: "Path | Checkpoint") -> "KeptSource | None":
    """Where ``--keep-source`` stores a checkpoint.

    Raises:
        PlanError: it is stored already.

    """
    from quantkit.building.kept import KeptSource

    if folder is None:
        return None
    if isinstance(source, Path):
        raise PlanError(
            f"--keep-source is for checkpoints from the Hub, and {source} is here; leave it out."
        )
    return KeptSource(folder, source)


def require_folder(source: "Path | Checkpoint", kept: "KeptSource | None", purpose: str) -> None:
    """Refuse a checkpoint on the Hub for what reads weights more than once, if it is not stored.

    Raises:
        PlanError: there is no folder to store it in.

    """
    if not (isinstance(source, Path) or source.repo is None) and kept is None:
        raise PlanError(
            f"{purpose} reads the weights layer by layer and more than once; give a folder to "
            "store them in with --keep-source."
        )


def fetch(
    source: "Path | Checkpoint",
    kept: "KeptSource | None",
    wish: "ConverterOptions",
    tell: Reporter,
) -> "Path | Checkpoint":
    """A checkpoint with its weights on the disk, for what reads them more than once.

    One on the Hub needs a folder (see `require_folder`). It is described anew if it was.

    Raises:
        CheckpointError: it cannot be downloaded.
        ConverterError: llama.cpp's converter does not describe what it described.
        OutputError: the folder cannot take it.

    """
    from quantkit.building.hub import HubReader
    from quantkit.building.output import check_space
    from quantkit.building.source import Reading, stamps_of
    from quantkit.checkpoint.ahead import MOST_BYTES
    from quantkit.checkpoint.open import described, open_stored

    if isinstance(source, Path) or source.repo is None or kept is None:
        return source
    kept.prepare()
    check_space(kept.folder, kept.missing)
    reading = Reading(stamps_of(source), ahead=MOST_BYTES)
    total = sum(source.repo.sizes[file.name] for file in source.files)
    meter = tell.open_meter("")
    try:
        with closing(HubReader(source.repo, reading, kept)) as reader:
            for done in reader.fetch():
                meter.show("Fetching", done, total)
    finally:
        meter.close()
    stored = open_stored(kept.folder)
    found = stored if source.description is None else described(stored, wish)
    return replace(found, repo=source.repo)


def get_ready(work: "Work", folder: Path, max_memory: int, tell: Reporter, *, smoke: bool) -> str:
    """Check what a build from the Hub needs of this machine; where it reads from, for people.

    The disk of the output folder is checked by the engine, which knows what already exists.

    Raises:
        PlanError: the memory is not there.
        OutputError: the checkpoint cannot be kept where it shall be.

    """
    from quantkit.verification.machine import memory

    repo = work.checkpoint.repo
    if repo is None:
        return ""
    here = memory()
    if here is not None and max_memory > here.available:
        raise PlanError(
            f"--max-memory {format_size(max_memory)} is more than the "
            f"{format_size(here.available)} that are available here; give less."
        )
    largest = max(layout.n_bytes for layout in work.layouts)
    if smoke and here is not None and largest > here.total:
        tell.note(
            f"Of {format_size(largest)}, the largest artifact does not fit in this machine's "
            f"{format_size(here.total)} of memory: its smoke test reads it from the disk, slowly. "
            "--no-smoke leaves that out."
        )
    if work.kept is not None:
        if work.kept.folder.resolve() == folder.resolve():
            raise PlanError(
                f"{folder} cannot be the output folder and that of --keep-source; choose two."
            )
        work.kept.prepare()
    total = sum(repo.sizes[file.name] for file in work.checkpoint.files)
    return f", {format_size(total)} from {repo}"
