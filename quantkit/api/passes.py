"""The passes of a build over the weights, with their smoke tests, and what came of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.api.checks import (
    check_artifact,
    check_projector,
    expect_tokens_of,
    has_several_tokenizers,
    require_loadable,
)
from quantkit.api.contest import keep_choice
from quantkit.api.hub import get_ready
from quantkit.api.options import CheckOptions, Resources
from quantkit.api.projector import layout_of
from quantkit.api.proven import prove_build, with_proof, with_recorded
from quantkit.api.publication import Publication
from quantkit.api.reporter import Reporter
from quantkit.api.stages import stages
from quantkit.building import engine
from quantkit.building.artifact import Artifact, Check
from quantkit.building.executor import ThisProcess, Workers
from quantkit.building.output import check_space
from quantkit.building.projector import knowing
from quantkit.building.work import Work
from quantkit.core.errors import SmokeError
from quantkit.core.units import counted, format_count, format_size
from quantkit.formats.readers import who_reads

if TYPE_CHECKING:
    from quantkit.building.shipping import Shipping

_HERE = ThisProcess()


@dataclass(frozen=True, slots=True)
class Built:
    """What a build made, and what was there already, in its folder."""

    folder: Path
    artifacts: tuple[Artifact, ...]

    @property
    def ok(self) -> bool:
        """Whether no artifact failed its smoke test."""
        return all(artifact.is_sound for artifact in self.artifacts)

    def raise_if_failed(self) -> None:
        """Nothing, if all is well.

        Raises:
            SmokeError: an artifact does not run.

        """
        rejected = [a for a in self.artifacts if a.check is not None and not a.check.ok]
        if rejected:
            failures = "; ".join(f"{a.path.name}: {a.check.verdict}" for a in rejected if a.check)
            raise SmokeError(
                f"{len(rejected)} of {len(self.artifacts)} artifacts failed the smoke test and are "
                f"kept under another name: {failures}"
            )


@dataclass(frozen=True, slots=True)
class Passes:
    """What goes over the weights, once each, into one folder.

    What is ``apart`` comes in a second pass over the same weights, and a model's vision or audio
    part, the ``projector``, last, in one over its own tensors. One artifact may be ``adopted``: it
    was built a moment ago, as a candidate.
    """

    work: Work
    apart: Work | None = None
    projector: Work | None = None
    adopted: str | None = None


def run_passes(
    passes: Passes,
    folder: Path,
    checks: CheckOptions,
    resources: Resources,
    tell: Reporter,
    *,
    publication: Publication | None = None,
    workers: Workers = _HERE,
) -> list[Artifact]:
    """Build artifacts and smoke-test them; finished ones are left alone.

    Raises:
        QuantkitError: as `building.engine.build` does, or llama.cpp would not load the model.

    """
    work, apart, projector = passes.work, passes.apart, passes.projector
    shipping = _get_ready(passes, folder, checks, resources, tell, publication, workers)
    tokens = None
    if checks.smoke or has_several_tokenizers(work.checkpoint):
        tokens = expect_tokens_of(work.checkpoint)
        work = work.remarking(tokens.remarks if tokens is not None else ())
    every = [one for one in (work, apart, projector) if one is not None]
    for remark in dict.fromkeys(remark for one in every for remark in one.remarks):
        tell.note(remark)
    proof = prove_build(work, resources.threads, tell) if checks.prove else None
    part = layout_of(projector)

    def check(path: Path) -> Check:
        found = check_artifact(path, resources.threads, resources.max_memory, tokens)
        return found if path.is_dir() else with_proof(found, proof)

    def check_part(path: Path) -> Check:
        assert part is not None and work.gguf is not None  # noqa: PT018, S101 - they were built
        return check_projector(path, resources.threads, work.gguf, part.takes or ())

    with stages(tell) as report:

        def build(
            one: Work, check: Callable[[Path], Check], workers: Workers = _HERE
        ) -> list[Artifact]:
            return engine.build(
                one,
                folder,
                jobs=resources.threads,
                max_memory=resources.max_memory,
                check=check if checks.smoke else None,
                report=report,
                say=tell.note,
                shipping=shipping,
                workers=workers,
                hashed=checks.verify,
            )

        artifacts = [
            keep_choice(with_recorded(artifact, folder, proof), folder)
            for artifact in build(work, check, workers)
        ]
        artifacts = [
            replace(artifact, fresh=True, recognized="")
            if artifact.layout.name == passes.adopted
            else artifact
            for artifact in artifacts
        ]
        if len(every) > 1 and work.checkpoint.description is not None:
            work.checkpoint.description.rows.close()
        if apart is not None:
            artifacts += build(apart, check, workers)
        if projector is not None:
            known = knowing(projector, [artifact.entry for artifact in artifacts])
            artifacts += build(known, check_part)
    return artifacts


def _get_ready(
    passes: Passes,
    folder: Path,
    checks: CheckOptions,
    resources: Resources,
    tell: Reporter,
    publication: Publication | None,
    workers: Workers,
) -> "Shipping | None":
    """Refuse early what can be refused, and say what is built. Gives where it is sent."""
    work, apart, projector = passes.work, passes.apart, passes.projector
    require_loadable(work, projector)
    origin = get_ready(work, folder, resources.max_memory, tell, smoke=checks.smoke)
    if later := [one for one in (apart, projector) if one is not None]:
        needed = sum(engine.look_ahead(one, folder) for one in later)
        ships = publication is not None and publication.options.delete_published
        if isinstance(workers, ThisProcess) and not ships:
            needed += engine.look_ahead(work, folder)
        check_space(folder, needed)
    shipping = publication.begin(work, projector) if publication else None
    whole = [work] if apart is None else [work, apart]
    quants = counted(sum(len(one.layouts) for one in whole), "quant")
    tell.note(
        f"{work.base_name}: {format_count(work.model.n_parameters)} parameters, {quants}, "
        f"{format_size(sum(one.n_bytes for one in whole))} into {folder}{origin}"
    )
    if (part := layout_of(projector)) is not None:
        tell.note(
            f"{part.files[0].name}: its part for {' and '.join(part.takes or ('other input',))}, "
            f"{format_size(part.n_bytes)}"
        )
    return shipping


def finish(
    artifacts: Sequence[Artifact],
    folder: Path,
    tell: Reporter,
    *,
    finished: Callable[[Built], None] | None = None,
    publication: Publication | None = None,
) -> Built:
    """Say what there is to say of what was built, and publish it if all of it runs.

    ``finished`` is called with it, before remarks on single artifacts and before anything is sent.
    """
    for artifact in artifacts:
        if artifact.recognized:
            more = "" if "sha256" in artifact.recognized else "; --verify compares its sha256"
            tell.note(f"{artifact.path.name} was there already, {artifact.recognized}{more}.")
    built = Built(folder, tuple(artifacts))
    if finished is not None:
        finished(built)
    for remark in _token_remarks(artifacts):
        tell.note(remark)
    for artifact in artifacts:
        if artifact.is_sound and (kind := artifact.layout.plan.quant.format) != "gguf":
            tell.note(who_reads(artifact.layout.name, kind, artifact.entry))
    if publication is not None and built.ok:
        publication.end(folder, tell)
    return built


def _token_remarks(artifacts: Sequence[Artifact]) -> list[str]:
    """How llama.cpp's tokens differ from the model's, where no GGUF can say what is needed."""
    from quantkit.checkpoint.tokenizer.deviations import describe_tokens

    details = [(artifact.entry.get("smoke") or {}).get("details", {}) for artifact in artifacts]
    records = [
        tokens
        for found in details
        if (tokens := found.get("tokens", {})).get("deviations") or "lacking" in tokens
    ]
    return list(dict.fromkeys(map(describe_tokens, records)))
