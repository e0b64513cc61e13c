"""A comparison as one page of HTML that needs nothing else."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from quantkit.core.errors import OutputError
from quantkit.core.files import read_file
from quantkit.core.units import counted, format_size
from quantkit.core.writing import replace_file
from quantkit.verification.compare import Comparison, Result
from quantkit.verification.divergence import PERCENTILES
from quantkit.verification.layers import WeightError
from quantkit.verification.pictures import efficient, names_of

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_CAPTIONS = {
    "frontier": "Size against mean KL divergence. Lower left is better. The line joins the files "
    "that no other one beats in both. Red: failed.",
    "percentiles": "How the divergence is distributed: that share of the tokens stays below.",
    "layers": "Relative root mean square error of each tensor and each expert.",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """What is shown, what its column is sorted by, and ``best``, ``good`` or ``bad`` if it is."""

    text: str = ""
    value: float | str = ""
    kind: str = ""

    @property
    def sorted_by(self) -> str:
        """What the page's script compares: as a number where it is one."""
        return self.value if isinstance(self.value, str) else f"{self.value:.9g}"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of as many cells as there are headings."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def write_page(
    comparison: Comparison,
    errors: Sequence[WeightError] | None,
    artifact: str,
    pictures: Sequence[Path],
    file: Path,
) -> None:
    """Write one HTML file that needs nothing else: no network, no other file.

    Raises:
        OutputError: it cannot be written.

    """
    choice = _choice_table(comparison)
    page = _template().render(
        comparison=comparison,
        reference=comparison.reference.name,
        threads=counted(comparison.threads, "thread"),
        artifact=artifact,
        captions=_CAPTIONS,
        pictures={
            name: base64.b64encode(read_file(picture)).decode()
            for name in _CAPTIONS
            for picture in pictures
            if picture.name == f"{name}.svg"
        },
        tables={
            "choice": choice,
            "speed": _speed_table(comparison),
            "quality": _quality_table(comparison),
            "weights": _weights_table(errors) if errors else None,
        },
        has_best=any(cell.kind == "best" for row in choice.rows for cell in row),
        **_verdicts(comparison),
    )
    try:
        replace_file(file, page.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}.") from None


@cache
def _template() -> Any:
    from jinja2 import Environment

    environment = Environment(autoescape=True, keep_trailing_newline=True)
    return environment.from_string(read_file(_TEMPLATE).decode())


def _verdicts(comparison: Comparison) -> dict[str, Any]:
    """How many are healthy, in words, and those that are not, with their reasons."""
    rows = [row for row in comparison.results if not row.is_reference]
    names = names_of(comparison.results)
    called = {id(row): name for row, name in zip(comparison.results, names, strict=True)}
    failed = [row for row in rows if not row.verdict.ok]
    unsure = [row for row in rows if row.verdict.ok and not row.verdict.judged]
    counts = [(len(failed), "failed"), (len(unsure), "not judged")]
    counts.append((len(rows) - len(failed) - len(unsure), "healthy"))
    return {
        "counts": ", ".join(f"{count} {word}" for count, word in counts if count),
        "verdicts": {
            kind: [(called[id(row)], row.verdict.reason) for row in some]
            for kind, some in (("failed", failed), ("unsure", unsure))
        },
    }


def _first_cells(row: Result, name: str) -> list[Cell]:
    size = row.subject.n_bytes
    return [Cell(name, name), Cell(format_size(size), size)]


def _choice_table(comparison: Comparison) -> Table:
    """What one chooses by, with those that no other file beats in size and divergence."""
    headings = ["file", "size", "mean KLD", "PPL ratio", "same top", "verdict"]
    if comparison.embeds:
        headings = ["file", "size", "mean cosine", "verdict"]
    measured = [row for row in comparison.results if row.measures and not row.is_reference]
    best = efficient([row for row in measured if row.verdict.ok])
    rows: list[list[Cell]] = []
    for row, name in zip(comparison.results, names_of(comparison.results), strict=True):
        m, cells = row.measures, _first_cells(row, name)
        if row in best:
            cells[0] = Cell(name, name, "best")
        if comparison.embeds:
            mean = row.cosines.mean if row.cosines else None
            cells.append(Cell() if mean is None else Cell(f"{mean:.5f}", mean))
        elif m is None:
            cells += [Cell()] * 3
        else:
            cells.append(Cell(f"{max(m.kld, 0.0):.5f}", max(m.kld, 0.0)))
            cells += [
                Cell(f"{m.ppl_ratio:.4f}", m.ppl_ratio),
                Cell(f"{m.same_top:.1%}", m.same_top),
            ]
        cells.append(_verdict_cell(row))
        rows.append(cells)
    return Table(headings, rows)


def _verdict_cell(row: Result) -> Cell:
    word = "healthy" if row.verdict.judged else "not judged"
    word = "reference" if row.is_reference else word if row.verdict.ok else "failed"
    return Cell(word, word, "good" if row.verdict.ok else "bad")


def _quality_table(comparison: Comparison) -> Table:
    shares = [f"KLD {p:g}\u00a0%" if p != 50 else "KLD median" for p in PERCENTILES]
    headings = ["artifact", "verdict", "size", "PPL", "\u00b1", "PPL ratio", "mean KLD"]
    headings += ["\u00b1", *shares, "KLD max", "same top", "RMS \u0394p", "run", "why"]
    if comparison.embeds:
        headings = ["artifact", "verdict", "size", "mean cosine", "worst cosine", "run", "why"]
    rows: list[list[Cell]] = []
    for row, name in zip(comparison.results, names_of(comparison.results), strict=True):
        m = row.measures
        cells = _first_cells(row, name)
        cells.insert(1, _verdict_cell(row))
        if row.cosines is not None:
            cells += [Cell(f"{v:.6f}", v) for v in (row.cosines.mean, row.cosines.worst)]
        elif m is None:
            cells += [Cell()] * (len(headings) - 5)
        else:
            # What rounding leaves of 0 may be below it.
            small = [max(x, 0.0) for x in (m.kld, m.kld_pm, *m.kld_percentiles, m.kld_max)]
            cells += [Cell(f"{v:.3f}", v) for v in (m.ppl, m.ppl_pm)]
            cells.append(Cell(f"{m.ppl_ratio:.5f}", m.ppl_ratio))
            cells += [Cell(f"{v:.6f}", v) for v in small]
            cells += [Cell(f"{v:.2%}", v) for v in (m.same_top, m.rms_dp)]
        cells += [Cell(text, text) for text in (row.subject.how, row.verdict.reason)]
        rows.append(cells)
    return Table(headings, rows)


def _speed_table(comparison: Comparison) -> Table:
    headings = ["artifact", "size", "prompt tokens/s", "generated tokens/s", "load s", "memory"]
    rows: list[list[Cell]] = []
    for row, name in zip(comparison.results, names_of(comparison.results), strict=True):
        speed = row.speed
        cells = _first_cells(row, name)
        if speed is None:
            cells += [Cell()] * 4
        else:
            cells += [
                Cell() if v is None else Cell(f"{v:,.1f}", v)
                for v in (speed.prompt_tokens_per_second, speed.generation_tokens_per_second)
            ]
            cells.append(Cell(f"{speed.load_seconds:.2f}", speed.load_seconds))
            memory = speed.resident_bytes
            cells.append(Cell(format_size(memory), memory) if memory else Cell())
        rows.append(cells)
    return Table(headings, rows)


def _weights_table(errors: Sequence[WeightError]) -> Table:
    rows = [
        [
            Cell(e.tensor, e.tensor),
            Cell() if e.expert is None else Cell(str(e.expert), e.expert),
            Cell(e.encoding, e.encoding),
            Cell(f"{e.error:.5f}", e.error),
        ]
        for e in errors
    ]
    return Table(["tensor", "expert", "encoding", "relative error"], rows)
