"""A build as the commands run it: with progress, its smoke tests, and what came of it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from quantkit.api.checks import (
    check_artifact,
    check_projector,
    expect_tokens_of,
    has_several_tokenizers,
    require_loadable,
)
from quantkit.api.projector import layout_of
from quantkit.api.proven import prove_build, with_proof, with_recorded
from quantkit.api.reporter import Reporter
from quantkit.cli.contest import keep_choice
from quantkit.cli.hub import get_ready
from quantkit.cli.output import emit_json, escape, note, open_meter, show_table
from quantkit.cli.publication import Publication
from quantkit.cli.stages import tell_stages
from quantkit.core.errors import SmokeError
from quantkit.core.units import counted, format_count, format_size
from quantkit.formats.readers import who_reads

if TYPE_CHECKING:
    from quantkit.building.artifact import Artifact, Check
    from quantkit.building.executor import Workers
    from quantkit.building.work import Work


def run_build(
    work: "Work",
    folder: Path,
    threads: int,
    memory: int,
    *,
    smoke: bool,
    as_json: bool,
    prove: bool = False,
    hashed: bool = False,
    others: "Sequence[Artifact]" = (),
    publication: Publication | None = None,
    workers: "Workers | None" = None,
    projector: "Work | None" = None,
    adopted: str | None = None,
    apart: "Work | None" = None,
) -> None:
    """Build, smoke-test and show the artifacts, with others that were built already.

    What is ``apart`` comes in a second pass over the same weights, and a model's vision or audio
    part last, in one over its own tensors. One artifact may be ``adopted``: it was built a moment
    ago, as a candidate.

    Raises:
        SmokeError: one of them does not run.

    """
    from quantkit.building import engine
    from quantkit.building.executor import ThisProcess
    from quantkit.building.output import check_space
    from quantkit.building.projector import knowing

    require_loadable(work, projector)
    origin = get_ready(work, folder, memory, smoke=smoke)
    part = layout_of(projector)
    if later := [part for part in (apart, projector) if part is not None]:
        needed = sum(engine.look_ahead(part, folder) for part in later)
        if isinstance(workers, ThisProcess | None) and not (publication and publication.deletes):
            needed += engine.look_ahead(work, folder)
        check_space(folder, needed)
    shipping = publication.begin(work, projector) if publication else None
    passes = [work] if apart is None else [work, apart]
    quants = counted(sum(len(one.layouts) for one in passes), "quant")
    note(
        f"{work.base_name}: {format_count(work.model.n_parameters)} parameters, {quants}, "
        f"{format_size(sum(one.n_bytes for one in passes))} into {folder}{origin}"
    )
    if part is not None:
        note(
            f"{part.files[0].name}: its part for {' and '.join(part.takes or ('other input',))}, "
            f"{format_size(part.n_bytes)}"
        )
    tokens = None
    if smoke or has_several_tokenizers(work.checkpoint):
        tokens = expect_tokens_of(work.checkpoint)
        work = work.remarking(tokens.remarks if tokens is not None else ())
    for remark in dict.fromkeys(remark for one in (work, *later) for remark in one.remarks):
        note(remark)
    proof = prove_build(work, threads, Reporter(note, open_meter)) if prove else None
    meter = open_meter()

    def check(path: Path) -> "Check":
        found = check_artifact(path, threads, memory, tokens)
        return found if path.is_dir() else with_proof(found, proof)

    def check_part(path: Path) -> "Check":
        assert part is not None and work.gguf is not None  # noqa: PT018, S101 - they were built
        return check_projector(path, threads, work.gguf, part.takes or ())

    build_here = partial(
        engine.build,
        jobs=threads,
        max_memory=memory,
        report=tell_stages(meter),
        say=note,
        shipping=shipping,
        hashed=hashed,
    )
    try:
        artifacts = build_here(
            work, folder, check=check if smoke else None, workers=workers or ThisProcess()
        )
        artifacts = [
            keep_choice(with_recorded(artifact, folder, proof), folder) for artifact in artifacts
        ]
        artifacts = [
            replace(artifact, fresh=True, recognized="")
            if artifact.layout.name == adopted
            else artifact
            for artifact in artifacts
        ]
        if later and work.checkpoint.description is not None:
            work.checkpoint.description.rows.close()
        if apart is not None:
            artifacts += build_here(
                apart, folder, check=check if smoke else None, workers=workers or ThisProcess()
            )
        if projector is not None and part is not None:
            projector = knowing(projector, [artifact.entry for artifact in artifacts])
            artifacts += build_here(projector, folder, check=check_part if smoke else None)
    finally:
        meter.close()
    finish([*others, *artifacts], folder, as_json, publication)


def finish(
    artifacts: "list[Artifact]",
    folder: Path,
    as_json: bool,
    publication: Publication | None = None,
) -> None:
    """Show what was built; fail if some of it does not run, and publish it if all of it does."""
    for artifact in artifacts:
        if artifact.recognized:
            more = "" if "sha256" in artifact.recognized else "; --verify compares its sha256"
            note(f"{artifact.path.name} was there already, {artifact.recognized}{more}.")
    _show_artifacts(artifacts, folder, as_json)
    for remark in _token_remarks(artifacts):
        note(remark)
    for artifact in artifacts:
        if artifact.is_sound and (kind := artifact.layout.plan.quant.format) != "gguf":
            note(who_reads(artifact.layout.name, kind, artifact.entry))
    rejected = [a for a in artifacts if a.check is not None and not a.check.ok]
    if rejected:
        failures = "; ".join(f"{a.path.name}: {a.check.verdict}" for a in rejected if a.check)
        raise SmokeError(
            f"{len(rejected)} of {len(artifacts)} artifacts failed the smoke test and are kept "
            f"under another name: {failures}"
        )
    if publication is not None:
        publication.end(folder)


def _token_remarks(artifacts: "list[Artifact]") -> list[str]:
    """How llama.cpp's tokens differ from the model's, where no GGUF can say what is needed."""
    from quantkit.checkpoint.tokenizer.deviations import describe_tokens

    details = [(artifact.entry.get("smoke") or {}).get("details", {}) for artifact in artifacts]
    records = [
        tokens
        for found in details
        if (tokens := found.get("tokens", {})).get("deviations") or "lacking" in tokens
    ]
    return list(dict.fromkeys(map(describe_tokens, records)))


def _show_artifacts(artifacts: "list[Artifact]", folder: Path, as_json: bool) -> None:
    from quantkit.verification.smoke import NOT_COMPARED

    if as_json:
        emit_json(
            {
                "folder": str(folder),
                "artifacts": {a.layout.name: a.entry for a in artifacts},
                "was_there_already": {
                    a.layout.name: a.recognized for a in artifacts if not a.fresh
                },
            }
        )
        return
    table = Table(title=escape(str(folder)), title_justify="left")
    table.add_column("file", no_wrap=True)
    for heading in ("size", "bits per weight", "tokens/s"):
        table.add_column(heading, justify="right")
    table.add_column("smoke test")
    for artifact in artifacts:
        outcome = artifact.entry.get("smoke") or {}
        speed = outcome.get("tokens_per_second")
        verdict = outcome.get("verdict", "not run")
        colour = {"passed": "green", "not run": "yellow", NOT_COMPARED: "yellow"}.get(
            verdict, "red"
        )
        n_files = len(artifact.layout.files)
        name = artifact.path.name if n_files == 1 else f"{artifact.layout.name}/ ({n_files} files)"
        table.add_row(
            escape(name),
            format_size(artifact.layout.n_bytes),
            f"{artifact.layout.plan.bits_per_weight:.2f}",
            f"{speed:,.0f}" if speed else "",
            f"[{colour}]{escape(verdict)}[/]" + ("" if artifact.fresh else " (was there already)"),
        )
    show_table(table)
