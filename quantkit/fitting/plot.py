"""Memory per quant as stacked bars, with the machine's limits as lines."""

from pathlib import Path

from quantkit.core.errors import OutputError
from quantkit.core.packages import why_missing
from quantkit.fitting.answer import Answer
from quantkit.fitting.memory import GIB

_COLOURS = {
    "weights": "#3b6ea5",
    "KV cache": "#e08e45",
    "state": "#c9b23e",
    "compute": "#6aa56a",
    "output": "#9a7bb5",
    "borrowed weights": "#8fb3d9",
    "overhead": "#999999",
}


def draw(result: Answer, file: Path) -> None:
    """Draw every quant's memory, all devices together, into an image file.

    Raises:
        OutputError: matplotlib is not installed, or the file cannot be written in its format.

    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OutputError(why_missing("matplotlib", "plot", "--plot")) from None
    rows = result.rows
    figure = Figure(figsize=(max(7.0, 0.4 * len(rows) + 3.5), 5.5), layout="constrained")
    axes = figure.add_subplot()
    bottom = [0.0] * len(rows)
    for name, colour in _COLOURS.items():
        heights = [
            sum(part.n_bytes for part in row.placement.parts if part.name == name) / GIB
            for row in rows
        ]
        if any(heights):
            axes.bar(range(len(rows)), heights, bottom=bottom, color=colour, label=name)
            bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    machine = result.machine
    limits = [("VRAM", machine.vram), ("RAM", machine.ram)]
    if machine.gpus and not machine.unified:
        limits.append(("VRAM + RAM", machine.vram + machine.ram))
    styles = ("--", ":", "-")
    for (label, limit), style in zip(limits, styles, strict=False):
        if limit:
            text = f"{label} {limit / GIB:.0f} GiB"
            axes.axhline(limit / GIB, color="#b03030", linestyle=style, label=text)
    axes.set_xticks(range(len(rows)), [row.variant.name for row in rows], rotation=60, ha="right")
    axes.set_ylabel("GiB")
    axes.set_title(f"{result.subject.title}, {result.settings.context:,} tokens")
    figure.legend(loc="outside right upper", fontsize="small")
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise OutputError(f"{file} cannot be drawn: {error}.") from None
