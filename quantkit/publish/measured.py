"""What ``quantkit compare --json`` found about the artifacts that are published."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.core.errors import PublishError
from quantkit.publish.layout import Artifact
from quantkit.verify.compare import Comparison, Result
from quantkit.verify.divergence import Measures
from quantkit.verify.quality import Verdict
from quantkit.verify.subjects import Subject


@dataclass(frozen=True, slots=True)
class Measured:
    """A comparison, of published artifacts only; ``rows`` by an artifact's name."""

    comparison: Comparison
    rows: dict[str, Result]


def read_comparison(file: Path, artifacts: Sequence[Artifact]) -> Measured | None:
    """The results for some artifacts; None where there are none for any of them.

    Raises:
        PublishError: the file is not what quantkit compare printed, or older than an artifact.

    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        written = file.stat().st_mtime
    except (OSError, ValueError) as error:
        raise PublishError(
            f"{file} cannot be read ({error}); write it with quantkit compare --json."
        ) from None
    try:
        found = _by_artifact(document, artifacts)
        reference = Path(document["reference"])
        rows = {name: _result(row) for name, row in found.items()}
        comparison = Comparison(
            reference=Subject(reference.name, reference, document["reference_quant"], 0, 0),
            text=str(document["text"]),
            text_sha256=str(document["text_sha256"]),
            context=int(document["context"]),
            windows=int(document["windows"]),
            threads=int(document["threads"]),
            results=tuple(rows.values()),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise PublishError(
            f"{file} is not what this version of quantkit compare --json prints; run it again."
        ) from None
    for artifact in artifacts:
        if artifact.name in rows and any(
            placed.local.stat().st_mtime > written for placed in artifact.files
        ):
            raise PublishError(
                f"{file} is older than {artifact.name}; run quantkit compare --json again."
            )
    return Measured(comparison, rows) if rows else None


def _by_artifact(document: dict[str, Any], artifacts: Sequence[Artifact]) -> dict[str, Any]:
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
        places[row["name"], row["bytes"]]: row
        for row in document["artifacts"]
        if row["measures"] is not None and (row["name"], row["bytes"]) in places
    }


def _result(row: dict[str, Any]) -> Result:
    figures, verdict = row["measures"], row["verdict"]
    percentiles = tuple(map(float, figures["kld_percentiles"]))
    numbers = {key: float(value) for key, value in figures.items() if key != "kld_percentiles"}
    return Result(
        subject=Subject(str(row["name"]), Path(row["name"]), row["quant"], int(row["bytes"]), 0),
        measures=Measures(**(numbers | {"kld_percentiles": percentiles})),  # type: ignore[arg-type]  # by name
        speed=None,
        verdict=Verdict(ok=bool(verdict["ok"]), reason=str(verdict["reason"]), limits=None),
        is_reference=bool(row["is_reference"]),
    )


def draw_frontier(measured: Measured) -> bytes | None:
    """The picture of size against divergence as PNG; None where there is nothing to draw.

    Raises:
        OutputError: matplotlib is not installed, or the disk is full.

    """
    from quantkit.verify.report import draw_frontier as draw

    if sum(not found.is_reference for found in measured.comparison.results) < 2:
        return None
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        file = Path(folder) / "frontier.png"
        draw(measured.comparison, file)
        return file.read_bytes()
