"""The candidates of a search within a build: announced, built, measured, and the best delivered."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.api.checks import check_artifact, expect_tokens_of, require_loadable
from quantkit.api.hub import get_ready
from quantkit.api.order import Order
from quantkit.api.reporter import Reporter
from quantkit.api.stages import stages
from quantkit.core.errors import NativeError, PlanError
from quantkit.core.units import counted, format_size

if TYPE_CHECKING:
    from quantkit.building.artifact import Artifact, Check
    from quantkit.building.work import Work
    from quantkit.formats.gguf.layout import GGUFLayout
    from quantkit.recipes.contest import Contest, Figure, Outcome
    from quantkit.recipes.rivals import Candidate


@dataclass(frozen=True, slots=True)
class PlannedCandidate:
    """A file that a build would measure, and deliver if it is the best."""

    way: str
    quant: str
    n_bytes: int
    bits_per_weight: float
    plan_sha256: str


def settle(work: "Work", order: Order, out: Path) -> "tuple[Work, str | None]":
    """The work with the best candidate in the place of what was searched, and how it was chosen.

    Returns:
        the work, and the name of the artifact that was put into the output folder now, if one was.

    Raises:
        PlanError: candidates are to be measured, and cannot be here.
        CheckpointError: llama.cpp would not load the model.

    """
    from quantkit.building.manifest import sound_entries
    from quantkit.recipes import contest as contests

    if order.choose is None or order.choose.kept is not None:
        return work, None
    compare, tell = order.options.contest.compare, order.tell
    if compare is False:
        return _unmeasured(work, "--no-compare left that out"), None
    contest, metadata = _plan(work, order)
    folder = out / contests.FOLDER / contest.digest
    record = contests.settled(contest, sound_entries(out) if out.is_dir() else {})
    if record is None:
        require_loadable(work)
        if why := _why_not(work, contest, order, folder, out):
            if compare:
                raise PlanError(f"Candidates cannot be measured: {why}; leave out --compare.")
            tell.note(f"No candidates are measured: {why}.")
            return _unmeasured(work, why), None
        _announce(work, contest, folder, tell)
        outcome = _hold(work, contest, order, folder)
        if outcome.best is None:
            why = outcome.why.rstrip(".")
            tell.note(f"No candidates were measured: {why}.")
            return _unmeasured(work, why), None
        record = contests.record_of(contest, outcome)
        _tell(contest, outcome, tell)
    best = contests.delivered_in(record)
    layout = _final(work, contest.candidates[best], metadata, order.options.files.shard_size)
    layout = layout.chosen(record)
    adopted = _adopt(folder, contest.layouts[best], out, layout)
    others = [x for x in work.layouts if x.name != layout.name and x is not _searched(work)]
    return replace(work, layouts=(*others, layout)), layout.name if adopted else None


def clear(out: Path) -> None:
    """Delete the candidates that were not delivered, once the build is finished."""
    from quantkit.recipes.contest import FOLDER

    shutil.rmtree(out / FOLDER, ignore_errors=True)


def keep_choice(artifact: "Artifact", folder: Path) -> "Artifact":
    """An artifact that was there already, whose manifest entry says how it was chosen now."""
    from quantkit.building.manifest import add_artifact
    from quantkit.building.output import locked

    choice = artifact.layout.record.get("choice", {})
    known = artifact.entry.get("choice") or {}
    if artifact.fresh or not choice or (known.get("measured") and not choice["measured"]):
        return artifact
    if known == choice:
        return artifact
    entry = {**artifact.entry, "choice": dict(choice)}
    with locked(folder):
        add_artifact(folder, artifact.layout.name, entry)
    return replace(artifact, entry=entry)


def foresee_candidates(work: "Work", order: Order, out: Path) -> tuple[PlannedCandidate, ...]:
    """The candidates that a build would measure; says what it would take, too."""
    from quantkit.recipes import contest as contests

    choose, tell = order.choose, order.tell
    if choose is None or choose.kept is not None or order.options.contest.compare is False:
        return ()
    contest, _ = _plan(work, order)
    folder = out / contests.FOLDER / contest.digest
    if why := _why_not(work, contest, order, folder, out):
        tell.note(f"No candidates would be measured: {why}.")
    else:
        _announce(work, contest, folder, tell)
    return tuple(
        PlannedCandidate(
            candidate.way,
            candidate.quant.name,
            layout.n_bytes,
            layout.plan.bits_per_weight,
            layout.digest,
        )
        for candidate, layout in zip(contest.candidates, contest.layouts, strict=True)
    )


def _plan(work: "Work", order: Order) -> "tuple[Contest, Any]":
    """The contest, and the keys of the model's files."""
    from quantkit.formats.gguf.metadata import describe_checkpoint
    from quantkit.recipes.contest import plan_contest

    assert order.choose is not None  # noqa: S101 - a recipe is searched
    metadata = describe_checkpoint(work.checkpoint, work.model, order.options.files.name)
    candidates = order.choose.candidates(work.model, metadata, work.imatrix, order.taken)
    text = order.options.contest.compare_text
    return plan_contest(work, metadata, candidates, text), metadata


def _searched(work: "Work") -> "GGUFLayout":
    """The layout of what was searched, which comes after all quants with names."""
    from quantkit.formats.gguf.layout import GGUFLayout

    found = [x for x in work.layouts if isinstance(x, GGUFLayout) and x.plan.quant.searched]
    return found[-1]


def _unmeasured(work: "Work", why: str) -> "Work":
    from quantkit.recipes.contest import unmeasured

    old = _searched(work)
    new = old.chosen(unmeasured(why))
    return replace(work, layouts=tuple(new if x is old else x for x in work.layouts))


def _final(
    work: "Work", candidate: "Candidate", metadata: Any, shard_size: int | None
) -> "GGUFLayout":
    """A candidate as it is delivered: under its name, in files of the size that is asked for."""
    from quantkit.formats.gguf.layout import lay_out
    from quantkit.planning.plan import make_plan

    plan = make_plan(work.model, candidate.quant, work.imatrix, candidate.recipe)
    return lay_out(plan, metadata, work.imatrix, shard_size)


def _why_not(work: "Work", contest: "Contest", order: Order, folder: Path, out: Path) -> str | None:
    """Why candidates cannot be measured here, as a clause; None where they can."""
    from quantkit.building import engine
    from quantkit.building.output import room_in
    from quantkit.verification.machine import memory

    if order.options.resources.cluster is not None:
        return "they would be run on this machine, and --cluster builds elsewhere"
    if len(contest.candidates) < 2:
        return "there is only one, for no fixed mixture is as small"
    here, reference = memory(), contest.reference_bytes
    if here is not None and reference > here.total:
        return (
            f"the unquantized model ({format_size(reference)}) does not fit in this machine's "
            f"{format_size(here.total)} of memory"
        )
    others = tuple(x for x in work.layouts if x is not _searched(work))
    needed = _needed(work, contest, folder)
    needed += engine.look_ahead(replace(work, layouts=others), out) if others else 0
    if needed > (free := room_in(out)):
        return (
            f"that takes {format_size(needed)} of disk, and {format_size(free)} are free in {out}"
        )
    return None


def _needed(work: "Work", contest: "Contest", folder: Path) -> int:
    """Bytes of disk that candidates, reference and recorded predictions still take."""
    from quantkit.building import engine

    return engine.look_ahead(contest.work(work), folder) + contest.score_bytes


def _announce(work: "Work", contest: "Contest", folder: Path, tell: Reporter) -> None:
    reference = "the unquantized model"
    if contest.reference is not None:
        reference += f" ({format_size(contest.reference.n_bytes)})"
    tell.note(
        f"{counted(len(contest.candidates), 'candidate')} of up to "
        f"{format_size(max(x.n_bytes for x in contest.layouts))} and {reference} are built in one "
        f"pass and run over {format_size(len(contest.text))} of text; that takes "
        f"{format_size(_needed(work, contest, folder))} of disk in {folder.parent} meanwhile. "
        "--no-compare leaves it out."
    )


def _hold(work: "Work", contest: "Contest", order: Order, folder: Path) -> "Outcome":
    """Build what is missing of a contest, and measure what was not measured yet."""
    from quantkit.building import engine
    from quantkit.recipes.contest import Outcome, measure

    tell, resources, smoke = order.tell, order.options.resources, order.options.checks.smoke
    for other in folder.parent.glob("*"):
        if other != folder:
            tell.note(f"{other} holds candidates of another build, and is deleted.")
            shutil.rmtree(other, ignore_errors=True)
    everything = contest.work(work)
    get_ready(everything, folder, resources.max_memory, tell, smoke=False)
    tokens = expect_tokens_of(work.checkpoint) if smoke else None
    everything = everything.remarking(tokens.remarks if tokens is not None else ())
    said: list[float] = []
    begun: set[str] = set()

    def check(path: Path) -> "Check":
        from quantkit.building.artifact import Check

        if contest.reference is not None and path.name.startswith(contest.reference.name):
            return Check(ok=True, verdict="not run", record={})  # it is run when it is recorded
        return check_artifact(path, resources.threads, resources.max_memory, tokens)

    def begin(what: str) -> None:
        if what not in begun:  # the reference comes with every candidate, and is run once
            begun.add(what)
            tell.note(f"Measuring {what}")

    def measured(candidate: "Candidate", figure: "Figure", seconds: float) -> None:
        if seconds and not said:
            said.append(seconds)
            tell.note(
                f"The unquantized model took {seconds:,.0f} s; no candidate takes much longer."
            )
        found = figure.failure or f"mean KL divergence {figure.kld:.5f} \u00b1 {figure.kld_pm:.5f}"
        tell.note(f"{candidate.way} ({candidate.quant.name}): {found}")

    with stages(tell) as report:
        artifacts = engine.build(
            everything,
            folder,
            jobs=resources.threads,
            max_memory=resources.max_memory,
            check=check if smoke else None,
            report=report,
            say=tell.note,
        )
    try:
        return measure(
            contest,
            artifacts[-len(contest.layouts) :],
            folder,
            resources.threads,
            report=begin,
            measured=measured,
        )
    except NativeError as error:
        return Outcome((), None, str(error))


def _tell(contest: "Contest", outcome: "Outcome", tell: Reporter) -> None:
    from quantkit.recipes.rivals import FIXED

    assert outcome.best is not None  # noqa: S101 - there is a winner to tell of
    won = contest.candidates[outcome.best]
    if won.way == FIXED:
        tell.note(
            f"The fixed mixture {won.quant.name} beats everything that was searched, so it is what "
            "is built."
        )
    else:
        tell.note(f"Best: {won.way} ({won.quant.name}).")


def _adopt(folder: Path, built: "GGUFLayout", out: Path, layout: "GGUFLayout") -> bool:
    """Give a candidate the place and name of what is delivered; False where it has them, or cannot.

    In several files, it is built once more with the rest. The entry comes first, as in a build: a
    file that no manifest knows would be nobody's.
    """
    from quantkit.building.manifest import add_artifact, sound_entries
    from quantkit.building.output import locked, naming_failures, sync_folder

    file, place = folder / built.files[0].name, out / layout.files[0].name
    if layout.folder or not file.is_file() or place.exists():
        return False
    entry = sound_entries(folder)[built.name]
    [written] = entry["files"]
    with locked(out), naming_failures(out, lambda: 0):
        add_artifact(
            out,
            layout.name,
            {
                **entry,
                "quant": layout.plan.quant.name,
                "files": [{**written, "name": place.name}],
                "choice": dict(layout.plan.choice),
            },
        )
        file.rename(place)
        sync_folder(out)
    return True
