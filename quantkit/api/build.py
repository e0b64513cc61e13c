"""Quants of a model: planned, and built in one pass over its weights."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.api.checks import require_loadable
from quantkit.api.contest import PlannedCandidate, clear, foresee_candidates, settle
from quantkit.api.gguf_matrix import foresee
from quantkit.api.hub import fetch, get_ready, require_folder
from quantkit.api.joined import foresee_joined, require_room, write_joined
from quantkit.api.matrix_first import MatrixFirst
from quantkit.api.on_text import OnText, plan_gptq_quants, plan_text
from quantkit.api.options import BuildOptions
from quantkit.api.order import Order, take_order
from quantkit.api.passes import Built, Passes, finish, run_passes
from quantkit.api.projector import layout_of
from quantkit.api.proven import foresee_build
from quantkit.api.reporter import Progress, reporter
from quantkit.api.running import computing_threads
from quantkit.api.workers import workers_of
from quantkit.building import engine
from quantkit.building.artifact import Artifact
from quantkit.building.output import check_space
from quantkit.building.work import Work
from quantkit.checkpoint.imatrix import Imatrix, load_imatrix
from quantkit.checkpoint.open import is_gguf_source
from quantkit.formats.layout import Layout

_USUAL = BuildOptions()


@dataclass(frozen=True, slots=True)
class Planned:
    """What a build would make: every file to the byte, with the vision or audio part by itself.

    ``candidates`` are what it would choose from, in the place of what was searched.
    """

    name: str
    layouts: tuple[Layout, ...]
    projector: Layout | None
    candidates: tuple[PlannedCandidate, ...]


def plan(
    source: str | Path,
    quants: Sequence[str] = (),
    options: BuildOptions = _USUAL,
    *,
    out: str | Path | None = None,
    note: Callable[[str], None] | None = None,
    given: Container[str] | None = None,
) -> Planned:
    """Plan what `build` would make of the same. Reads headers and small files, and writes nothing.

    Args:
        source: a checkpoint folder, a GGUF, or a name on the Hub.
        quants: names of quants and sets; none if a recipe or a budget is given.
        options: how they would be built.
        out: the output folder, instead of the usual one, NAME-GGUF.
        note: told remarks, in sentences.
        given: names of the options that were given, as the command line spells its parameters;
            None for those that are not what they are by themselves.

    Raises:
        PlanError: what is asked for makes no sense, or an option would do nothing.
        QuantkitError: it cannot be built; every class of ``core.errors`` says why.

    """
    order = take_order(str(source), quants, options, out, reporter(None, note), given, writes=False)
    matrix = _matrix_of(order, _folder_of_sum(order))
    if order.makes_matrix:
        text, file = order.options.text, order.folder / "imatrix.gguf"
        matrix = foresee(order.source, file, text.sources, text.chunks)
    work, projector = None, None
    candidates: tuple[PlannedCandidate, ...] = ()
    if order.has_slabs:
        work, projector = order.with_projector(order.work(matrix))
        require_loadable(work, projector)
        if order.options.checks.prove:
            order.tell.note(foresee_build(work))
        candidates = foresee_candidates(work, order, order.folder_of(work.base_name))
    apart = order.work_apart()
    name, folders = plan_gptq_quants(order) if order.gptq else ("", [])
    parts = [part for part in (work, apart, projector) if part is not None]
    for remark in dict.fromkeys(remark for part in parts for remark in part.remarks):
        order.tell.note(remark)
    layouts = [layout for part in (work, apart) if part is not None for layout in part.layouts]
    return Planned(
        name or (work.base_name if work else ""),
        (*layouts, *folders),
        layout_of(projector),
        candidates,
    )


def build(
    source: str | Path,
    quants: Sequence[str] = (),
    options: BuildOptions = _USUAL,
    *,
    out: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    note: Callable[[str], None] | None = None,
    finished: Callable[[Built], None] | None = None,
    given: Container[str] | None = None,
) -> Built:
    """Build quants of a model, all of them in one pass over its weights, and run them.

    Stopped or killed, the same call goes on where it was; finished artifacts are left alone.

    Args:
        source: a checkpoint folder, a GGUF, or a name on the Hub.
        quants: names of quants and sets; none if a recipe or a budget is given.
        options: how they are built.
        out: the output folder, instead of the usual one, NAME-GGUF.
        progress: told how far it is.
        note: told remarks, in sentences.
        finished: called with what was built before any of it is published.
        given: as for `plan`.

    Returns:
        what was built. What failed its smoke test is there, too, under another name, and then
        nothing is published: see `Built.raise_if_failed`.

    Raises:
        PlanError: what is asked for makes no sense, or an option would do nothing.
        QuantkitError: it cannot be built; every class of ``core.errors`` says why.

    """
    tell = reporter(progress, note)
    order = take_order(str(source), quants, options, out, tell, given, writes=True)
    options, publication = order.options, order.publication
    checks, resources = options.checks, options.resources
    joined = _folder_of_sum(order)
    matrix = _matrix_of(order, joined)
    on_text = _plan_text(order, matrix)
    work = None if on_text is not None else order.work(matrix)
    with workers_of(resources, tell.note, publishes=publication is not None) as workers:
        artifacts: list[Artifact] = []
        if on_text is not None:
            order, on_text = _fetch(order, on_text)
            matrix, artifacts = _use_text(order, on_text, matrix)
            if not order.has_slabs:
                return finish(
                    artifacts, on_text.folder, tell, finished=finished, publication=publication
                )
            work = order.work(matrix)
        assert work is not None  # noqa: S101 - there are slabs, for there is no GPTQ alone
        if joined is not None:
            matrix = _write_joined(order, joined)
            work = order.work(matrix)
        folder = on_text.folder if on_text is not None else order.folder_of(work.base_name)
        adopted = None
        if order.choose is not None:
            if publication is not None:
                publication.begin(work)  # before candidates are built
            work, adopted = settle(work, order, folder)
        work, projector = order.with_projector(work)
        passes = Passes(work, order.work_apart(), projector, adopted)
        artifacts += run_passes(
            passes, folder, checks, resources, tell, publication=publication, workers=workers
        )
        built = finish(artifacts, folder, tell, finished=finished, publication=publication)
    if order.choose is not None and built.ok:
        clear(folder)
    return built


def _folder_of_sum(order: Order) -> Path | None:
    """Where the sum of several importance matrices goes, found once; None where it is not made."""
    return order.folder if len(order.matrices) > 1 else None


def _matrix_of(order: Order, joined: Path | None) -> Imatrix | None:
    """The importance matrix that was given; of several, what they will add up to in a folder."""
    if joined is not None:
        file, context = joined / "imatrix.gguf", order.options.text.context
        return foresee_joined(order.source, order.matrices, context, file)
    return load_imatrix(order.matrices[0]) if order.matrices else None


def _plan_text(order: Order, matrix: Imatrix | None) -> OnText | MatrixFirst | None:
    """What a text is needed for, planned, and refused where it cannot be; None if there is none."""
    if not (order.makes_matrix or order.gptq):
        return None
    if order.gptq:
        require_folder(order.source, order.kept, "GPTQ")
    on_text = plan_text(order)
    foreseen = order.work(matrix or on_text.foresee_matrix()) if order.has_slabs else None
    _refuse_early(order, on_text, foreseen)
    return on_text


def _refuse_early(order: Order, on_text: OnText | MatrixFirst, first: Work | None) -> None:
    """Refuse whatever can be refused before a text is run through the model.

    Args:
        order: what is asked for.
        on_text: what is made with the text.
        first: what is built afterwards, planned with a stand-in for the importance matrix.

    """
    hashed, memory = order.options.checks.verify, order.options.resources.max_memory
    needed = on_text.look_ahead(hashed=hashed)
    for work in (first, order.work_apart()):
        if work is None:
            continue
        engine.divide_memory(work.read_ahead, memory)
        guessed = on_text.lacks_matrix
        needed += engine.look_ahead(work, on_text.folder, hashed=hashed, guessed=guessed)
        get_ready(work, on_text.folder, memory, order.tell, smoke=False)
    check_space(on_text.folder, needed)
    if order.publication is None:
        return
    if first is not None:  # what is published is all of one format
        order.publication.begin(first)
    elif isinstance(on_text, OnText):
        names = [build.layout.name for build in on_text.builds]
        order.publication.refuse_folders(on_text.checkpoint, names)


def _fetch(order: Order, on_text: OnText | MatrixFirst) -> tuple[Order, OnText | MatrixFirst]:
    """The same with the source's weights on the disk, for they are read more than once."""
    fetched = fetch(order.source, order.kept, order.options.converter, order.tell)
    if fetched is order.source:
        return order, on_text
    order = order.stored_in(fetched)
    return order, plan_text(order)


def _use_text(
    order: Order, on_text: OnText | MatrixFirst, matrix: Imatrix | None
) -> tuple[Imatrix | None, list[Artifact]]:
    """The importance matrix, and what is made layer by layer."""
    resources = order.options.resources
    with computing_threads(None if is_gguf_source(order.source) else resources.jobs):
        matrix = matrix or on_text.make_matrix()
        if not (order.gptq and isinstance(on_text, OnText)):
            return matrix, []
        if resources.cluster:
            order.tell.note("GPTQ needs one layer after the other and stays here.")
        return matrix, on_text.build_gptq(resources, order.options.checks, order.tell)


def _write_joined(order: Order, folder: Path) -> Imatrix:
    """The sum of the importance matrices that were given, in the output folder."""
    return write_joined(
        order.matrices,
        order.options.text.context,
        folder / "imatrix.gguf",
        lambda matrix: require_room(order.work(matrix), folder),
    )
