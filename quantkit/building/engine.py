"""One pass over a checkpoint that writes every requested artifact.

The main thread gives units to an executor in file order, which reads them, encodes each once per
block format and writes it into every artifact that wants it; finished units are synced, then
journaled. At the end each artifact is read back against what was written, handed to the caller's
check, and renamed.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from quantkit.building import manifest
from quantkit.building.artifact import Artifact, Check, Progress
from quantkit.building.executor import ThisProcess, Workers
from quantkit.building.journal import NAME as JOURNAL
from quantkit.building.journal import remove_stale
from quantkit.building.output import PartialArtifact, locked, naming_failures
from quantkit.building.run import SIDE_FILES, Run, refuse_taken
from quantkit.building.shipping import Shipping, is_sent, put_away, send_whole
from quantkit.building.units import UNIT_ELEMENTS
from quantkit.building.work import Work
from quantkit.core.errors import PlaceLostError, PlanError
from quantkit.core.units import format_size
from quantkit.core.writing import refuse_links
from quantkit.formats.layout import Layout

# Per unit in flight: the source bytes, two float32 copies of them (rows, and tiles for our own
# kernels), and the largest encoding (F32).
UNIT_MEMORY = UNIT_ELEMENTS * 4 * 4


_THIS_PROCESS = ThisProcess()


def build(
    work: Work,
    out: Path,
    *,
    jobs: int,
    max_memory: int,
    check: Callable[[Path], Check] | None = None,
    report: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    shipping: Shipping | None = None,
    workers: Workers = _THIS_PROCESS,
    hashed: bool = False,
) -> list[Artifact]:
    """Build artifacts into a folder; finished ones are left alone, an interrupted build resumes.

    Args:
        work: what to build.
        out: the output folder; nothing is written outside it.
        jobs: encoding threads.
        max_memory: bytes of units in flight, and of what is read ahead, which may take a quarter;
            it caps the threads where they would need more.
        check: called with the first file of each GGUF, or the folder of any other artifact,
            under its partial name, before it is renamed; an artifact it does not accept ends as
            ``.rejected``.
        report: called from this thread with the progress, in source bytes while encoding.
        say: told, before the first byte is written, what of an interrupted build will be lost.
        shipping: where finished files of GGUF artifacts are sent, and deleted here: shards as soon
            as they are written, which no check sees then; single files after their check.
        workers: who encodes.
        hashed: compare the sha256 of what already exists, not size and time alone.

    Raises:
        OutputError: the folder cannot take the result (``NoSpaceError`` where it is too small), or
            what already exists was changed.
        WeightsError: a weight is not finite, or too large for its encoding.
        CheckpointError: a source file changed or cannot be read.
        Interrupted: Ctrl-C; what was done is kept.

    """
    ahead = divide_memory(work.read_ahead, max_memory)
    with locked(out):
        refuse_links(out / manifest.NAME, out / JOURNAL)
        entries = manifest.sound_entries(out)
        to_build = []
        found = {}
        for x in work.layouts:
            entry = entries.get(x.name, {})
            elsewhere = is_sent(entry, shipping) or workers.hold(out, entry)
            how = manifest.find_finished(out, work, x, elsewhere=elsewhere, hashed=hashed)
            if how is None:
                to_build.append(x)
            else:
                found[x.name] = how
        built = {}
        if not to_build:
            remove_stale(out)
        else:
            slots = (max_memory - ahead) // UNIT_MEMORY

            def run() -> list[Artifact]:
                layouts = tuple(to_build)
                parts = Run(work, layouts, out, jobs, slots, ahead, report, say, shipping, workers)
                return parts.execute(check)

            try:
                artifacts = run()
            except PlaceLostError:
                artifacts = run()  # only what was there is built again
            built = {a.layout.name: a for a in artifacts}
        known = manifest.sound_entries(out)
        if shipping is not None:
            with naming_failures(out, lambda: 0):
                for x in work.layouts:
                    if x.name in built and not built[x.name].is_sound:
                        continue
                    if not is_sent(known[x.name], shipping):
                        send_whole(out, x, known[x.name], shipping)
                    put_away(out, x)
    return [
        built.get(x.name) or _existing(out, x, known[x.name], found[x.name]) for x in work.layouts
    ]


def divide_memory(read_ahead: int, max_memory: int) -> int:
    """How much of the memory may be read ahead, in bytes; the rest is for units in flight.

    Args:
        read_ahead: the most that the reader likes to hold.
        max_memory: bytes for both.

    Raises:
        PlanError: it is not enough for one unit.

    """
    ahead = min(read_ahead, max_memory // 4)
    if max_memory - ahead < UNIT_MEMORY:
        least = UNIT_MEMORY * 4 // 3 if ahead else UNIT_MEMORY
        raise PlanError(
            f"--max-memory {format_size(max_memory)} is below one slab; "
            f"give at least {-(-least // 2**20)}MiB."
        )
    return ahead


def look_ahead(work: Work, out: Path, *, hashed: bool = False, guessed: bool = False) -> int:
    """The bytes that a build will still need on the disk, as far as they are known. Writes nothing.

    For those who have something expensive to do before they build.

    Args:
        work: what to build.
        out: the output folder.
        hashed: compare the sha256 of what already exists.
        guessed: the work's importance matrix stands for one that is not made yet, so what is there
            by the same plan may be what will be asked for.

    Raises:
        OutputError: the folder cannot take the result: it holds something else, or another build.

    """
    needed = SIDE_FILES
    with locked(out) if out.exists() else nullcontext():
        for layout in work.layouts:
            if out.exists():
                if manifest.find_finished(out, work, layout, hashed=hashed):
                    continue
                if guessed and manifest.is_planned(out, layout):
                    continue
            artifact = PartialArtifact(out, layout)
            refuse_taken(artifact, work.checkpoint)
            needed += artifact.missing
    return needed


def _existing(out: Path, layout: Layout, entry: Mapping[str, Any], how: str) -> Artifact:
    return Artifact(layout, out / layout.opened, entry, None, fresh=False, recognized=how)
