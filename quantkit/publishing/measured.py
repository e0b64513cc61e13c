"""What ``quantkit compare --json`` found about the artifacts that are published."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from quantkit.core.errors import PublishError
from quantkit.core.files import read_file
from quantkit.publishing.layout import PublishedArtifact
from quantkit.verification.compare import Comparison, Result
from quantkit.verification.kept import KeptComparison, KeptResult, read_kept
from quantkit.verification.quality import Verdict
from quantkit.verification.subjects import Subject


@dataclass(frozen=True, slots=True)
class Measured:
    """A comparison, of published artifacts only; ``rows`` by an artifact's name."""

    comparison: Comparison
    rows: dict[str, Result]


def read_comparison(file: Path, artifacts: Sequence[PublishedArtifact]) -> Measured | None:
    """The results for some artifacts; None where there are none for any of them.

    Raises:
        PublishError: the file is not what quantkit compare printed, or older than an artifact.

    """
    document = read_kept(file, error=PublishError)
    written = file.stat().st_mtime
    rows = {name: _result(row) for name, row in _by_artifact(document, artifacts).items()}
    if not all(map(_is_finite, rows.values())):
        raise PublishError(
            f"{file} has figures that are no numbers; write it with quantkit compare --json."
        )
    reference = Path(document.reference)
    comparison = Comparison(
        reference=Subject(reference.name, reference, document.reference_quant, 0, 0),
        text=document.text,
        text_sha256=document.text_sha256,
        context=document.context,
        windows=document.windows,
        threads=document.threads,
        gpu_layers=document.gpu_layers,
        results=tuple(rows.values()),
    )
    for artifact in artifacts:
        if artifact.name in rows and any(
            placed.local.stat().st_mtime > written for placed in artifact.files
        ):
            raise PublishError(
                f"{file} is older than {artifact.name}; run quantkit compare --json again."
            )
    return Measured(comparison, rows) if rows else None


def _by_artifact(
    document: KeptComparison, artifacts: Sequence[PublishedArtifact]
) -> dict[str, KeptResult]:
    """The rows with figures, by the name of the artifact of that file name and size."""
    places = {}
    for artifact in artifacts:
        files = artifact.entry["files"]
        size = sum(file["bytes"] for file in files)
        shown = artifact.name
        if artifact.quant.format == "gguf":
            shown = files[0]["name"].rpartition("/")[2]
        places[shown, size] = artifact.name
    return {
        places[row.name, row.bytes]: row
        for row in document.artifacts
        if (row.measures or row.cosines) and (row.name, row.bytes) in places
    }


def _result(row: KeptResult) -> Result:
    return Result(
        subject=Subject(row.name, Path(row.name), row.quant, row.bytes, 0),
        measures=row.measures,
        speed=None,
        verdict=Verdict(ok=row.verdict.ok, reason=row.verdict.reason, limits=None),
        is_reference=row.is_reference,
        cosines=row.cosines,
    )


def _is_finite(result: Result) -> bool:
    figures = asdict(result.measures) if result.measures else {}
    figures["kld_percentiles"] = sum(figures.get("kld_percentiles", ()))
    figures |= asdict(result.cosines) if result.cosines else {}
    return all(math.isfinite(figure) for figure in figures.values())


def draw_frontier(measured: Measured) -> bytes | None:
    """The picture of size against divergence as PNG; None where there is nothing to draw.

    Raises:
        OutputError: matplotlib is not installed, or the disk is full.

    """
    from quantkit.verification.pictures import draw_frontier as draw

    drawn = [r for r in measured.comparison.results if r.measures and not r.is_reference]
    if len(drawn) < 2:
        return None
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        file = Path(folder) / "frontier.png"
        draw(measured.comparison, file)
        return read_file(file)
