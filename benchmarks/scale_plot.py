"""A projection as a picture: time against nodes, with the limits as lines."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.scale_model import Prediction

_PHASES = (("encode", "--"), ("verify", ":"))
_VERBS = {"encode": "encoding", "verify": "reading back"}
_COLOURS = {
    "processors": "#3b6ea5",
    "node links": "#6aa56a",
    "storage": "#e08e45",
    "driver": "#999999",
    "Hub": "#9a7bb5",
    "longest file": "#b03030",
}


def draw(predictions: Mapping[int, Prediction], title: str, file: Path) -> None:
    """Draw minutes against nodes, both on logarithmic scales, into an image file."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    nodes = list(predictions)
    whole = [predicted.seconds / 60 for predicted in predictions.values()]
    axes.plot(nodes, whole, color="black", linewidth=2.5, marker="o", label="in all")
    for phase, style in _PHASES:
        limits = [getattr(predicted, phase) for predicted in predictions.values()]
        for name in limits[0]:
            minutes = [limit[name] / 60 for limit in limits]
            label = f"{_VERBS[phase]}: {name}"
            axes.plot(nodes, minutes, color=_COLOURS[name], linestyle=style, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(nodes, [str(count) for count in nodes])
    axes.set_xlabel("nodes")
    axes.set_ylabel("minutes")
    axes.set_title(title)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize="small", loc="lower left")
    figure.savefig(file, dpi=120)
