"""Candidates for one budget, measured against the unquantized model, and which of them is best.

Each is a file of the size that is asked for, so nothing but a measurement tells them apart: the
mean divergence that `compare` finds, on text that nothing was fitted to. What was measured is kept
after each file, so that a run that was stopped goes on there.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec

from quantkit.building.artifact import Artifact
from quantkit.building.work import Work
from quantkit.core.documents import read_object, to_type
from quantkit.core.errors import CompareError, FileError
from quantkit.core.files import read_text
from quantkit.core.topics import TO_CHOOSE, topics_to_choose_by
from quantkit.core.writing import is_own, replace_file, write_file
from quantkit.formats.gguf.layout import GGUFLayout, lay_out
from quantkit.formats.gguf.metadata import ModelMetadata
from quantkit.planning.plan import make_plan
from quantkit.planning.quants import SOURCE, find_quants
from quantkit.recipes.rivals import FIXED, Candidate
from quantkit.verification.compare import compare
from quantkit.verification.subjects import Subject, exact_quant, open_subject

FOLDER = ".quantkit-candidates"
"""Where candidates lie, in the output folder, until one of them is delivered."""

TEXT = f"Python's own documentation (pydoc topics '{TO_CHOOSE[0]}' to '{TO_CHOOSE[1]}')"
CONTEXT = 512
_KEPT = "figures.json"
_BYTES_PER_TOKEN = 3  # of text, at least, in all but the smallest vocabularies


class Figure(msgspec.Struct, frozen=True):
    """A candidate's mean divergence and its standard error in nats, or why there is none."""

    kld: float | None = None
    kld_pm: float | None = None
    windows: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Contest:
    """What is built to choose from: candidates as files, and what they are measured against.

    ``layouts`` are those of the candidates in their order, under names of their own. ``reference``
    is None where the source itself serves, which is ``origin`` then.
    """

    candidates: tuple[Candidate, ...]
    layouts: tuple[GGUFLayout, ...]
    reference: GGUFLayout | None
    origin: Path | None
    text: bytes
    text_name: str

    @property
    def text_sha256(self) -> str:
        """Of the text that candidates are measured on."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def digest(self) -> str:
        """Tells a contest from others: of all plans and the text."""
        parts = [*(layout.digest for layout in self.layouts), self.text_sha256]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]

    @property
    def reference_bytes(self) -> int:
        """Bytes of what the candidates are measured against."""
        if self.reference is not None:
            return self.reference.n_bytes
        assert self.origin is not None  # noqa: S101 - one of the two is there
        return open_subject(self.origin).n_bytes

    @property
    def score_bytes(self) -> int:
        """About what the reference's recorded predictions take on the disk, which goes, too."""
        tensors = self.layouts[0].plan.tensors
        embeddings = (t.target for t in tensors if t.target.name == "token_embd.weight")
        vocabulary = max((target.shape[-2] for target in embeddings), default=0)
        return len(self.text) // _BYTES_PER_TOKEN // 2 * 2 * vocabulary

    def work(self, work: Work) -> Work:
        """The same source as the work of building all that is measured."""
        parts = self.layouts if self.reference is None else (self.reference, *self.layouts)
        return replace(work, layouts=parts)


def plan_contest(
    work: Work, metadata: ModelMetadata, candidates: Sequence[Candidate], text: Path | None
) -> Contest:
    """Plan what is to be built and measured. Reads the text, and nothing else.

    Args:
        work: on the model that candidates are of.
        metadata: its keys.
        candidates: what there is to choose from.
        text: a UTF-8 file to measure on; by default `TEXT`.

    Raises:
        TextError: the text cannot be read.

    """
    checkpoint, model = work.checkpoint, work.model
    layouts = []
    for number, one in enumerate(candidates, 1):
        # Two recipes of one size have one name; here each needs its own.
        quant = replace(one.quant, name=f"candidate-{number}", searched=True)
        plan = make_plan(model, quant, work.imatrix, one.recipe)
        layouts.append(lay_out(plan, metadata, work.imatrix))
    origin = reference = None
    if checkpoint.header is not None and checkpoint.repo is None:
        origin = checkpoint.path
    else:
        name = SOURCE if checkpoint.header is not None else exact_quant(checkpoint)
        (quant,) = find_quants([name])
        reference = lay_out(make_plan(model, quant), metadata)
    return Contest(
        tuple(candidates),
        tuple(layouts),
        reference,
        origin,
        topics_to_choose_by().encode() if text is None else read_text(text),
        TEXT if text is None else text.name,
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found of the candidates, in their order, and the place of the best.

    ``best`` is None where none of them could be measured, and ``why`` says why.
    """

    figures: tuple[Figure, ...]
    best: int | None
    why: str = ""


def measure(
    contest: Contest,
    artifacts: Sequence[Artifact],
    folder: Path,
    threads: int,
    report: Callable[[str], None] = lambda _: None,
    measured: Callable[[Candidate, Figure, float], None] = lambda *_: None,
) -> Outcome:
    """Measure candidates that were built; those that were measured before are not run again.

    Args:
        contest: what was planned.
        artifacts: the candidates, in their order.
        folder: where they lie; what was measured is kept there.
        threads: that llama.cpp computes with.
        report: told what comes next.
        measured: told what was found of a candidate, and how many seconds the reference took, 0
            where that is not known.

    Raises:
        NativeError: llama.cpp is not installed, or its libraries do not load.

    """
    reference = _reference(contest, folder)
    kept = _Kept(folder / _KEPT, _identity(contest, reference))
    text = folder / "text.txt"
    write_file(text, contest.text)
    figures = []
    for candidate, artifact in zip(contest.candidates, artifacts, strict=True):
        key = artifact.entry["files"][0]["sha256"]
        figure, seconds = kept.figures.get(key), 0.0
        if figure is None and not artifact.is_sound:
            figure = Figure(failure="it does not run")
        if figure is None:
            try:
                figure, seconds = _run(artifact.path, reference, text, folder, threads, report)
            except CompareError as error:  # of the reference: without it there is nothing
                return Outcome((), None, str(error))
            kept.keep(key, figure)
        measured(candidate, figure, seconds)
        figures.append(figure)
    return _judged(figures)


def _reference(contest: Contest, folder: Path) -> Subject:
    if contest.origin is not None:
        return open_subject(contest.origin)
    assert contest.reference is not None  # noqa: S101 - one of the two is there
    return open_subject(folder / contest.reference.files[0].name)


def _run(
    file: Path,
    reference: Subject,
    text: Path,
    folder: Path,
    threads: int,
    report: Callable[[str], None],
) -> tuple[Figure, float]:
    found = compare(
        [open_subject(file)],
        reference,
        text=text,
        context=CONTEXT,
        threads=threads,
        cache=folder / "reference",
        report=report,
    )
    own = next(result for result in found.results if result.is_reference)
    speed = own.speed.prompt_tokens_per_second if own.speed is not None else 0.0
    seconds = found.windows * found.context / speed if speed else 0.0
    result = next(result for result in found.results if not result.is_reference)
    measures = result.measures
    if measures is None:
        embeds = "it embeds texts and predicts no tokens"
        return Figure(failure=embeds if result.cosines else result.verdict.reason), seconds
    if not (isfinite(measures.kld) and isfinite(measures.kld_pm)):
        return Figure(failure="its divergence is not a number"), seconds
    return Figure(measures.kld, measures.kld_pm, found.windows), seconds


def _judged(figures: Sequence[Figure]) -> Outcome:
    """The least mean divergence wins, and of equals the first."""
    known = [(f.kld, place) for place, f in enumerate(figures) if f.kld is not None]
    if not known:
        reasons = dict.fromkeys(figure.failure for figure in figures)
        return Outcome(tuple(figures), None, "; ".join(reasons))
    return Outcome(tuple(figures), min(known)[1])


def _identity(contest: Contest, reference: Subject) -> dict[str, Any]:
    status = reference.gguf.stat()
    return {
        "text": contest.text_sha256,
        "context": CONTEXT,
        "reference": [reference.name, reference.n_bytes, status.st_mtime_ns],
    }


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    identity: dict[str, Any]
    figures: dict[str, Figure]


class _Kept:
    """Figures by the sha256 of the files that they are of, in a file of ours."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._identity = dict(identity)
        self.figures: dict[str, Figure] = {}
        if not is_own(path):
            return
        try:
            document = to_type(read_object(path), _Document, path)
        except FileError:
            return  # it was cut off by a crash, and everything is measured again
        if document.identity == self._identity:
            self.figures = document.figures

    def keep(self, key: str, figure: Figure) -> None:
        self.figures[key] = figure
        document = _Document(self._identity, self.figures)
        replace_file(self._path, msgspec.json.encode(document))


def record_of(contest: Contest, outcome: Outcome) -> dict[str, Any]:
    """What the manifest keeps of a contest that has a winner."""
    rows = zip(contest.candidates, contest.layouts, outcome.figures, strict=True)
    reference = "" if contest.reference is None else contest.reference.plan.quant.name
    return {
        "measured": True,
        "text": contest.text_name,
        "text_sha256": contest.text_sha256,
        "context": CONTEXT,
        "windows": max(figure.windows for figure in outcome.figures),
        "reference": reference or "the source",
        "candidates": [
            {
                "way": candidate.way,
                "quant": candidate.quant.name,
                "bytes": layout.n_bytes,
                "plan_sha256": layout.digest,
                "kld": figure.kld,
                "kld_pm": figure.kld_pm,
                "failure": figure.failure,
                "delivered": place == outcome.best,
            }
            for place, (candidate, layout, figure) in enumerate(rows)
        ],
    }


def unmeasured(why: str) -> dict[str, Any]:
    """What the manifest keeps of a search whose result was measured against nothing."""
    return {"measured": False, "why": why}


def settled(contest: Contest, entries: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The record of this very contest in a manifest, where an earlier run has ended it."""
    plans = [layout.digest for layout in contest.layouts]
    for entry in entries.values():
        record = entry.get("choice") or {}
        if not record.get("measured"):
            continue
        same = (record["text_sha256"], record["context"]) == (contest.text_sha256, CONTEXT)
        if same and [row["plan_sha256"] for row in record["candidates"]] == plans:
            return record
    return None


def delivered_in(record: Mapping[str, Any]) -> int:
    """The place of the candidate that a record says was delivered."""
    return next(n for n, row in enumerate(record["candidates"]) if row["delivered"])


def describe_choice(record: Mapping[str, Any]) -> str:
    """How an artifact was chosen, as sentences for people."""
    if not record.get("measured"):
        why = record.get("why") or "it was built from a recipe"
        return f"Not measured against a fixed mixture of its size: {why}."
    rows = record["candidates"]
    won = rows[delivered_in(record)]
    beside = [
        f"{row['way']}{' ' + row['quant'] if row['way'] == FIXED else ''} {_figure(row)}"
        for row in rows
        if row is not won
    ]
    against = f"; the others: {', '.join(beside)}" if beside else ""
    return (
        f"Chosen of {len(rows)} candidates within one budget by mean KL divergence in nats over "
        f"{record['windows']} windows of {record['context']} tokens of {record['text']} (sha256 "
        f"{record['text_sha256'][:16]}): {won['way']} {_figure(won)}{against}."
    )


def _figure(row: Mapping[str, Any]) -> str:
    if row.get("kld") is None:
        return "not measured"
    return f"{row['kld']:.5f} \u00b1 {row['kld_pm']:.5f}"
