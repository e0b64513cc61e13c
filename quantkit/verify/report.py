"""Pictures of a comparison, and one self-contained page with everything."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.core.errors import OutputError
from quantkit.core.files import read_file
from quantkit.core.packages import why_missing
from quantkit.core.units import format_size
from quantkit.core.writing import replace_file
from quantkit.verify.compare import Comparison, Result
from quantkit.verify.divergence import PERCENTILES
from quantkit.verify.layers import WeightError
from quantkit.verify.subjects import told_apart

_BLUE, _GREY, _RED = "#3b6ea5", "#999999", "#b03030"
_LEAST_KLD = 1e-6  # where a logarithmic axis ends


def draw_all(
    comparison: Comparison, errors: Sequence[WeightError] | None, artifact: str, folder: Path
) -> list[Path]:
    """Draw everything into a folder, each picture as SVG and PNG; returns the files.

    Args:
        comparison: what was measured.
        errors: of one artifact, for the heat map; None for none.
        artifact: that artifact's name.
        folder: where.

    Raises:
        OutputError: matplotlib is not installed, or a file cannot be written.

    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise OutputError(why_missing("matplotlib", "plot", "A picture")) from None
    rows = [row for row in comparison.results if row.measures and not row.is_reference]
    figures: dict[str, Any] = {}
    if rows:
        figures["frontier"] = _frontier(Figure(figsize=(8, 5), layout="constrained"), rows)
        figures["percentiles"] = _percentiles(Figure(figsize=(8, 5), layout="constrained"), rows)
    if errors is not None:
        figures["layers"] = _heat_map(errors, artifact)
    files = []
    # Fixed names instead of random ones, so that the same figures give the same SVG.
    with rc_context({"svg.hashsalt": "quantkit"}):
        for name, figure in figures.items():
            for kind in ("svg", "png"):
                file = folder / f"{name}.{kind}"
                metadata = {"Date": None} if kind == "svg" else None
                try:
                    figure.savefig(file, dpi=120, metadata=metadata)
                except OSError as error:
                    raise OutputError(f"{file} cannot be drawn: {error.strerror}.") from None
                files.append(file)
    return files


def draw_frontier(comparison: Comparison, file: Path) -> None:
    """Draw the picture of size against divergence alone, in the format that the name ends with.

    Raises:
        OutputError: matplotlib is not installed, or the file cannot be written.

    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OutputError(why_missing("matplotlib", "plot", "A picture")) from None
    rows = [row for row in comparison.results if row.measures and not row.is_reference]
    figure = _frontier(Figure(figsize=(8, 5), layout="constrained"), rows)
    try:
        figure.savefig(file, dpi=120)
    except OSError as error:
        raise OutputError(f"{file} cannot be drawn: {error.strerror}.") from None


def efficient(rows: Sequence[Result]) -> list[Result]:
    """The artifacts that no other one beats in both size and mean KLD, smallest first."""
    best = float("inf")
    kept = []
    for row in sorted(rows, key=lambda row: (row.subject.n_bytes, _kld(row))):
        if _kld(row) < best:
            best = _kld(row)
            kept.append(row)
    return kept


def _kld(row: Result) -> float:
    return max(row.measures.kld, _LEAST_KLD) if row.measures else float("inf")


def _names(rows: Sequence[Result]) -> list[str]:
    return told_apart([row.subject for row in rows])


def _frontier(figure: Any, rows: Sequence[Result]) -> Any:
    axes = figure.add_subplot()
    on_it = efficient(rows)
    scale, unit = (1e9, "GB") if max(r.subject.n_bytes for r in rows) >= 1e9 else (1e6, "MB")
    sizes = [row.subject.n_bytes / scale for row in on_it]
    axes.plot(sizes, [_kld(row) for row in on_it], color=_BLUE, zorder=1, label="efficient")
    for row, name in zip(rows, _names(rows), strict=True):
        place = (row.subject.n_bytes / scale, _kld(row))
        colour = _RED if not row.verdict.ok else _BLUE if row in on_it else _GREY
        axes.scatter(*place, color=colour, zorder=2, s=28)
        axes.annotate(name, place, (5, 4), textcoords="offset points", fontsize=8)
    axes.margins(x=0.08)
    axes.set_yscale("log")
    axes.set_xlabel(f"size, {unit}")
    axes.set_ylabel("mean KL divergence, nats")
    axes.set_title("Size against divergence from the reference")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    return figure


def _percentiles(figure: Any, rows: Sequence[Result]) -> Any:
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    series = [(f"{p:g} %", i) for i, p in enumerate(PERCENTILES)]
    shades = np.linspace(0.25, 1.0, len(series) + 1)
    for (label, index), shade in zip(series, shades, strict=False):
        values = [
            max(row.measures.kld_percentiles[index], _LEAST_KLD) for row in rows if row.measures
        ]
        axes.plot(places, values, "o-", color=_BLUE, alpha=shade, markersize=4, label=label)
    most = [max(row.measures.kld_max, _LEAST_KLD) for row in rows if row.measures]
    axes.plot(places, most, "^", color=_RED, markersize=5, label="maximum")
    axes.set_yscale("log")
    axes.set_xticks(places, _names(rows), rotation=60, ha="right")
    axes.set_ylabel("KL divergence of a token, nats")
    axes.set_title("How the divergence is distributed")
    axes.grid(visible=True, which="major", axis="y", alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    return figure


def _heat_map(errors: Sequence[WeightError], artifact: str) -> Any:
    """Layers down, roles across, each expert a column of its own."""
    from matplotlib.figure import Figure

    inside = [error for error in errors if error.layer is not None]
    columns = list(dict.fromkeys((error.role, error.expert) for error in inside))
    n_layers = 1 + max((error.layer or 0 for error in inside), default=0)
    grid = np.full((n_layers, max(1, len(columns))), np.nan)
    for error in inside:
        grid[error.layer or 0, columns.index((error.role, error.expert))] = error.error
    width = min(40.0, max(8.0, 0.24 * len(columns) + 2))
    height = min(20.0, max(3.5, 0.22 * n_layers + 2.6))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0)
    figure.colorbar(image, ax=axes, label="relative error of the weights")
    labels = [role if expert is None else f"{role} {expert}" for role, expert in columns]
    axes.set_xticks(range(len(columns)), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(n_layers), [str(i) for i in range(n_layers)], fontsize=7)
    axes.set_ylabel("layer")
    axes.set_title(f"Weights of {artifact} against the reference")
    return figure


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #ffffff; --line: #d8d8dc;
  --soft: #f3f3f6; --good: #1d7a3a; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --paper: #17181a; --line: #3a3b3f;
  --soft: #222327; --good: #6fcf8a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .4rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
th { background: var(--soft) !important; }
th button { all: unset; cursor: pointer; font-weight: 600; padding: .3rem 0; }
th button:focus-visible { outline: 2px solid currentColor; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
td:last-child, th:last-child { text-align: left; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
figure { margin: 1rem 0; max-width: 56rem; }
figure img { width: 100%; height: auto; background: #fff; border-radius: 6px; }
.note { font-size: .85rem; opacity: .8; }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    });
    body.append(...rows);
  }));
}
"""

_CAPTIONS = {
    "frontier": "Size against mean KL divergence; on the line are the artifacts that no other one "
    "beats in both. Lower left is better. Red: failed.",
    "percentiles": "Share of the tokens whose divergence is at most this large.",
    "layers": "Relative root mean square error of each tensor and each expert.",
}


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
    name = html.escape(comparison.reference.name)
    parts = [
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>Divergence from {name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>Divergence from {name}</h1>",
        f"<p>{comparison.windows} windows of {comparison.context} tokens, the second half of each "
        f"scored, in llama.cpp {comparison.place} ({comparison.threads} threads).</p>",
        f"<p class='note'>Text: {html.escape(comparison.text)} (sha256 "
        f"{comparison.text_sha256[:16]}). KL divergence in nats. The reference's log-probabilities "
        "are kept in 16 bits; its own row shows what that rounding leaves. &plusmn; is one "
        "standard error.</p>",
        "<h2>Quality</h2>",
        _quality_table(comparison),
        "<h2>Speed and memory</h2>",
        _speed_table(comparison),
    ]
    for picture in pictures:
        if picture.suffix == ".svg":
            data = base64.b64encode(read_file(picture)).decode()
            caption = _CAPTIONS[picture.stem]
            parts.append(
                f"<figure><img alt='{caption}' src='data:image/svg+xml;base64,{data}'>"
                f"<figcaption class='note'>{caption}</figcaption></figure>"
            )
    if errors:
        parts += [f"<h2>Weights of {html.escape(artifact)}</h2>", _weights_table(errors)]
    parts.append(f"<script>{_SCRIPT}</script>\n</body>\n</html>\n")
    try:
        replace_file(file, "\n".join(parts).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}.") from None


Cell = tuple[str, float | str]  # what is shown, and what it is sorted by


def _table(name: str, headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    head = "".join(f"<th scope='col'><button>{h}</button></th>" for h in headings)
    body = "\n".join(
        "<tr>" + "".join(f"<td data-value='{_value(v)}'>{text}</td>" for text, v in row) + "</tr>"
        for row in rows
    )
    return (
        f"<div class='scroll'><table id='{name}'><thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _value(value: float | str) -> str:
    return html.escape(value, quote=True) if isinstance(value, str) else f"{value:.9g}"


def _first_cells(row: Result, name: str) -> list[Cell]:
    size = row.subject.n_bytes
    return [(html.escape(name), name), (format_size(size), size)]


def _quality_table(comparison: Comparison) -> str:
    shares = [f"KLD {p:g}&nbsp;%" if p != 50 else "KLD median" for p in PERCENTILES]
    headings = ["artifact", "verdict", "size", "PPL", "&plusmn;", "PPL ratio", "mean KLD"]
    headings += ["&plusmn;", *shares, "KLD max", "same top", "RMS &Delta;p", "run", "why"]
    if comparison.embeds:
        headings = ["artifact", "verdict", "size", "mean cosine", "worst cosine", "run", "why"]
    rows: list[list[Cell]] = []
    for row, name in zip(comparison.results, _names(comparison.results), strict=True):
        m = row.measures
        cells = _first_cells(row, name)
        kind = "good" if row.verdict.ok else "bad"
        word = "healthy" if row.verdict.judged else "not judged"
        word = "reference" if row.is_reference else word if row.verdict.ok else "failed"
        cells.insert(1, (f"<span class='{kind}'>{word}</span>", word))
        if row.cosines is not None:
            cells += [(f"{v:.6f}", v) for v in (row.cosines.mean, row.cosines.worst)]
        elif m is None:
            cells += [("", "")] * (len(headings) - 5)
        else:
            # What rounding leaves of 0 may be below it.
            small = [max(x, 0.0) for x in (m.kld, m.kld_pm, *m.kld_percentiles, m.kld_max)]
            cells += [(f"{v:.3f}", v) for v in (m.ppl, m.ppl_pm)]
            cells.append((f"{m.ppl_ratio:.5f}", m.ppl_ratio))
            cells += [(f"{v:.6f}", v) for v in small]
            cells += [(f"{v:.2%}", v) for v in (m.same_top, m.rms_dp)]
        cells.append((html.escape(row.subject.how), row.subject.how))
        cells.append((html.escape(row.verdict.reason), row.verdict.reason))
        rows.append(cells)
    return _table("quality", headings, rows)


def _speed_table(comparison: Comparison) -> str:
    headings = ["artifact", "size", "prompt tokens/s", "generated tokens/s", "load s", "memory"]
    rows: list[list[Cell]] = []
    for row, name in zip(comparison.results, _names(comparison.results), strict=True):
        speed = row.speed
        cells = _first_cells(row, name)
        if speed is None:
            cells += [("", "")] * 4
        else:
            cells += [
                (f"{v:,.1f}", v) if v is not None else ("", "")
                for v in (speed.prompt_tokens_per_second, speed.generation_tokens_per_second)
            ]
            cells.append((f"{speed.load_seconds:.2f}", speed.load_seconds))
            memory = speed.resident_bytes
            cells.append((format_size(memory), memory) if memory else ("", ""))
        rows.append(cells)
    return _table("speed", headings, rows)


def _weights_table(errors: Sequence[WeightError]) -> str:
    headings = ["tensor", "expert", "encoding", "relative error"]
    rows: list[list[Cell]] = [
        [
            (html.escape(e.tensor), e.tensor),
            ("", "") if e.expert is None else (str(e.expert), e.expert),
            (e.encoding, e.encoding),
            (f"{e.error:.5f}", e.error),
        ]
        for e in errors
    ]
    return _table("weights", headings, rows)
