"""Pictures of a comparison: size against divergence, its percentiles, errors of weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.core.errors import OutputError
from quantkit.core.packages import why_missing
from quantkit.core.printable import one_line
from quantkit.verification.compare import Comparison, Result
from quantkit.verification.divergence import PERCENTILES
from quantkit.verification.labels import place_labels
from quantkit.verification.layers import WeightError
from quantkit.verification.subjects import told_apart

_BLUE, _GREY, _RED = "#3b6ea5", "#999999", "#b03030"
_NAMES, _KINDS = ("frontier", "percentiles", "layers"), ("svg", "png")
_LEAST_KLD = 1e-6  # where a logarithmic axis ends
_MOST_TICKS = 48  # numbers and names along an axis that can be read


def all_pictures(folder: Path) -> list[Path]:
    """The files that `draw_all` may write into a folder."""
    return [folder / f"{name}.{kind}" for name in _NAMES for kind in _KINDS]


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
    matplotlib = _matplotlib()
    rows = _drawn(comparison)
    figures: dict[str, Any] = {}
    if rows:
        figures["frontier"] = _frontier(_figure(matplotlib), rows)
        figures["percentiles"] = _percentiles(_figure(matplotlib), rows)
    if errors is not None:
        figures["layers"] = _heat_map(errors, artifact)
    files = []
    # Fixed names instead of random ones, so that the same figures give the same SVG.
    with matplotlib.rc_context({"svg.hashsalt": "quantkit"}):
        for name, figure in figures.items():
            for kind in _KINDS:
                file = folder / f"{name}.{kind}"
                _save(figure, file, {"Date": None} if kind == "svg" else None)
                files.append(file)
    return files


def draw_frontier(comparison: Comparison, file: Path) -> None:
    """Draw the picture of size against divergence alone, in the format that the name ends with.

    Raises:
        OutputError: matplotlib is not installed, or the file cannot be written.

    """
    _save(_frontier(_figure(_matplotlib()), _drawn(comparison)), file)


def _drawn(comparison: Comparison) -> list[Result]:
    """What pictures show: what was measured, but the reference."""
    return [row for row in comparison.results if row.measures and not row.is_reference]


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError:
        raise OutputError(why_missing("matplotlib", "plot", "A picture")) from None
    return matplotlib


def _figure(matplotlib: Any) -> Any:
    return matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")


def _save(figure: Any, file: Path, metadata: dict[str, Any] | None = None) -> None:
    try:
        figure.savefig(file, dpi=120, metadata=metadata)
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


def _labels(rows: Sequence[Result]) -> list[str]:
    return [_plain(name) for name in names_of(rows)]


def _plain(name: str) -> str:
    """A name as matplotlib shows it: what does not print is spelled, and dollars are no formula."""
    return one_line(name).replace("$", r"\$")


def names_of(rows: Sequence[Result]) -> list[str]:
    """What pictures and pages call artifacts: their quants, or what tells them apart."""
    return [one_line(name) for name in told_apart([row.subject for row in rows])]


def _frontier(figure: Any, rows: Sequence[Result]) -> Any:
    axes = figure.add_subplot()
    on_it = efficient([row for row in rows if row.verdict.ok])
    scale, unit = (1e9, "GB") if max(r.subject.n_bytes for r in rows) >= 1e9 else (1e6, "MB")
    sizes = [row.subject.n_bytes / scale for row in on_it]
    axes.plot(sizes, [_kld(row) for row in on_it], color=_BLUE, zorder=1)
    places = [(row.subject.n_bytes / scale, _kld(row)) for row in rows]
    for row, place in zip(rows, places, strict=True):
        colour = _RED if not row.verdict.ok else _BLUE if row in on_it else _GREY
        axes.scatter(*place, color=colour, zorder=2, s=28)
    axes.margins(x=0.08, y=0.08)
    axes.set_yscale("log")
    axes.set_xlabel(f"size, {unit}")
    axes.set_ylabel("mean KL divergence, nats")
    axes.set_title("Size against divergence from the reference")
    axes.grid(visible=True, which="major", alpha=0.3)
    line = [(size, _kld(row)) for size, row in zip(sizes, on_it, strict=True)]
    place_labels(figure, axes, places, _labels(rows), lines=[line], fontsize=8)
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
    axes.set_xticks(places, _labels(rows), rotation=60, ha="right")
    axes.set_ylabel("KL divergence of a token, nats")
    axes.set_title("How the divergence is distributed")
    axes.grid(visible=True, which="major", axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small", title="of the tokens")
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
    across = slice(None, None, 1 + len(labels) // (4 * _MOST_TICKS))
    down = slice(None, None, 1 + n_layers // _MOST_TICKS)
    axes.set_xticks(range(len(labels))[across], labels[across], rotation=90, fontsize=7)
    axes.set_yticks(range(n_layers)[down], list(map(str, range(n_layers)))[down], fontsize=7)
    axes.set_ylabel("layer")
    axes.set_title(f"Weights of {_plain(artifact)} against the reference")
    return figure
