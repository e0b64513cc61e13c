"""What ``quantkit compare --json`` found about the artifacts that are published."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.core.errors import PublishError
from quantkit.publish.layout import Artifact

FILE = "compare.json"
"""Where the results are looked for, in the folder of the build."""


@dataclass(frozen=True, slots=True)
class Row:
    """One artifact's figures: mean KL divergence in nats, perplexity against the reference's."""

    kld: float
    kld_pm: float
    ppl: float
    ppl_ratio: float
    same_top: float
    is_reference: bool
    ok: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """A comparison, of published artifacts only; ``rows`` by an artifact's name."""

    reference: str
    text: str
    text_sha256: str
    context: int
    windows: int
    rows: dict[str, Row]
    document: dict[str, Any]


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
        rows = {name: _row(row) for name, row in found.items()}
        for artifact in artifacts:
            if artifact.name in rows and any(
                placed.local.stat().st_mtime > written for placed in artifact.files
            ):
                raise PublishError(
                    f"{file} is older than {artifact.name}; run quantkit compare --json again."
                )
        measured = Measured(
            reference=Path(document["reference"]).name,
            text=str(document["text"]),
            text_sha256=str(document["text_sha256"]),
            context=int(document["context"]),
            windows=int(document["windows"]),
            rows=rows,
            document={**document, "artifacts": list(found.values())},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise PublishError(
            f"{file} is not what this version of quantkit compare --json prints; run it again."
        ) from None
    return measured if rows else None


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


def _row(row: dict[str, Any]) -> Row:
    m = row["measures"]
    return Row(
        kld=max(0.0, float(m["kld"])),
        kld_pm=float(m["kld_pm"]),
        ppl=float(m["ppl"]),
        ppl_ratio=float(m["ppl_ratio"]),
        same_top=float(m["same_top"]),
        is_reference=bool(row["is_reference"]),
        ok=bool(row["verdict"]["ok"]),
    )


def draw_frontier(measured: Measured) -> bytes | None:
    """The picture of size against divergence as PNG; None where there is nothing to draw.

    Raises:
        OutputError: matplotlib is not installed, or the disk is full.

    """
    from quantkit.verify.compare import Comparison, Result
    from quantkit.verify.divergence import Measures
    from quantkit.verify.quality import Verdict
    from quantkit.verify.report import draw_all
    from quantkit.verify.subjects import Subject

    def result(row: dict[str, Any]) -> Result:
        figures = row["measures"]
        verdict = row["verdict"]
        return Result(
            Subject(row["name"], Path(row["name"]), row["quant"], row["bytes"], 0),
            Measures(**{**figures, "kld_percentiles": tuple(figures["kld_percentiles"])}),
            None,
            Verdict(ok=verdict["ok"], reason=verdict["reason"], limits=None),
            row["is_reference"],
        )

    results = tuple(result(row) for row in measured.document["artifacts"])
    if sum(not found.is_reference for found in results) < 2:
        return None
    comparison = Comparison(
        reference=Subject(measured.reference, Path(measured.reference), None, 0, 0),
        text=measured.text,
        text_sha256=measured.text_sha256,
        context=measured.context,
        windows=measured.windows,
        threads=0,
        results=results,
    )
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        pictures = draw_all(comparison, None, "", Path(folder))
        (picture,) = [file for file in pictures if file.name == "frontier.png"]
        return picture.read_bytes()
