"""Comparisons that are kept: ``compare.json`` in the folder of a build."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from quantkit.core.errors import FileError
from quantkit.core.writing import is_own
from quantkit.verification.compare import Comparison, Result
from quantkit.verification.divergence import PERCENTILES
from quantkit.verification.kept import KeptComparison, KeptResult, KeptVerdict, read_kept
from quantkit.verification.subjects import is_quantized


def as_numbers(comparison: Comparison) -> dict[str, Any]:
    """Everything that was found, as JSON values."""
    kept = KeptComparison(
        reference=str(comparison.reference.gguf),
        reference_quant=comparison.reference.quant,
        reference_is_quantized=is_quantized(comparison.reference),
        text=comparison.text,
        text_sha256=comparison.text_sha256,
        context=comparison.context,
        windows=comparison.windows,
        threads=comparison.threads,
        gpu_layers=comparison.gpu_layers,
        kld_percentiles=PERCENTILES,
        artifacts=[_kept(result) for result in comparison.results],
    )
    numbers: dict[str, Any] = msgspec.to_builtins(kept)
    return numbers


def _kept(result: Result) -> KeptResult:
    subject = result.subject
    return KeptResult(
        name=subject.name,
        file=str(subject.gguf),
        quant=subject.quant,
        bytes=subject.n_bytes,
        run=subject.how,
        is_reference=result.is_reference,
        measures=result.measures,
        cosines=result.cosines,
        speed=result.speed,
        verdict=KeptVerdict(**asdict(result.verdict)),
    )


def more_windows(file: Path, comparison: Comparison) -> int | None:
    """The windows of a kept comparison that says more of the same artifacts than a new one does.

    None where it is not over more windows of the same text, is older than an artifact or lacks one,
    or where the new one finds fault.
    """
    if not is_own(file) or comparison.failed:
        return None
    try:
        kept = read_kept(file)
    except FileError:
        return None
    measured = {(row.name, row.bytes) for row in kept.artifacts if row.measures is not None}
    now = {(result.subject.name, result.subject.n_bytes) for result in comparison.results}
    same = (kept.text_sha256, kept.context) == (comparison.text_sha256, comparison.context)
    if not (same and now <= measured and kept.windows > comparison.windows):
        return None
    places = [file.with_name(name) for name, _ in now]
    files = [f for place in places for f in (place.iterdir() if place.is_dir() else [place])]
    newest = max((f.stat().st_mtime for f in files if f.exists()), default=0)
    return kept.windows if newest <= file.stat().st_mtime else None
