"""Proofs of a conversion, with progress and in words."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.api.reporter import Reporter
from quantkit.core.errors import SmokeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from quantkit.building.artifact import Artifact, Check
    from quantkit.building.work import Work
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.verification.proof import Proof


def foresee_build(work: "Work") -> str:
    """What `prove_build` would do, as a sentence."""
    from quantkit.verification.proving import foresee_proof

    return foresee_proof(work.checkpoint)


def prove_build(work: "Work", threads: int, tell: Reporter) -> "Proof":
    """Prove the conversion that a build is about to do, and say how that ended.

    Raises:
        SmokeError: the GGUFs would not be the model.

    """
    from quantkit.checkpoint.gguf import parse_header
    from quantkit.verification.proof import describe_proof
    from quantkit.verification.proving import prove_conversion

    layout = work.gguf
    assert layout is not None  # noqa: S101 - refused without one
    header = parse_header(layout.files[0].header, layout.files[0].n_bytes)
    assert header is not None  # noqa: S101 - it is whole
    proof = _metered(
        tell,
        lambda report: prove_conversion(
            work.checkpoint, header.metadata, threads=threads, report=report
        ),
    )
    if proof.outcome == "wrong":
        raise SmokeError(
            f"The GGUFs of {work.base_name} would not be the model, and none was built: "
            f"{proof.reason}"
        )
    tell.note(describe_proof(proof.as_numbers()))
    return proof


def prove_file(
    checkpoint: "Checkpoint", artifact: Path, threads: int | None, tell: Reporter
) -> "Proof":
    """Prove that a GGUF is the model of a checkpoint."""
    from quantkit.verification.proving import prove_artifact

    return _metered(
        tell,
        lambda report: prove_artifact(checkpoint, artifact, threads=threads, report=report),
    )


def _metered(tell: Reporter, work: "Callable[[Callable[[float, int], None]], Proof]") -> "Proof":
    meter = tell.open_meter("layer")
    try:
        return work(lambda done, layers: meter.show("Running the original", done, layers))
    finally:
        meter.close()


def with_proof(check: "Check", proof: "Proof | None") -> "Check":
    """A smoke test whose record holds the proof of the conversion."""
    if proof is None:
        return check
    details = {**check.record["details"], "proof": proof.as_numbers()}
    return replace(check, record={**check.record, "details": details})


def with_recorded(artifact: "Artifact", folder: Path, proof: "Proof | None") -> "Artifact":
    """An artifact that was there already, whose manifest entry holds the proof, as a fresh one's.

    One that was never run in llama.cpp has no record that could hold it.
    """
    from quantkit.building.manifest import add_artifact
    from quantkit.building.output import locked

    ran = artifact.entry.get("smoke")
    if proof is None or artifact.fresh or not ran or artifact.layout.plan.quant.format != "gguf":
        return artifact
    details = {**ran.get("details", {}), "proof": proof.as_numbers()}
    entry = {**artifact.entry, "smoke": {**ran, "details": details}}
    with locked(folder):
        add_artifact(folder, artifact.layout.name, entry)
    return replace(artifact, entry=entry)
