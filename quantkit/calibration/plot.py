"""The heat map of routing: which share of a layer's tokens each expert got."""

from collections.abc import Mapping
from pathlib import Path

from quantkit.calibration.routing import Routing
from quantkit.core.errors import OutputError

_MOST_TICKS = 32


def require_drawable(file: Path) -> None:
    """Refuse a file that no picture can become, before there is anything to draw.

    Raises:
        OutputError: its folder is not there, or its ending names no format of pictures.

    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if file.suffix[1:].lower() not in known:
        raise OutputError(
            f"{file} cannot be drawn: its ending must say which picture it is, such as .png or "
            ".svg."
        )
    if not file.absolute().parent.is_dir():
        raise OutputError(f"{file} cannot be drawn: {file.parent} does not exist; create it first.")


def draw(routing: Mapping[int, Routing], file: Path, title: str) -> None:
    """Draw layers, by their numbers, by experts into an image file.

    Raises:
        OutputError: the model has no experts, or the file cannot be written in its format.

    """
    from matplotlib.figure import Figure

    if not routing:
        raise OutputError("--plot draws where the tokens of a MoE went; this model has no experts.")
    shares = [[count / sum(layer.tokens) for count in layer.tokens] for layer in routing.values()]
    layers, experts = len(shares), len(shares[0])
    size = (min(16.0, max(4.0, 0.3 * experts + 2.5)), min(16.0, max(3.0, 0.22 * layers + 1.5)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, aspect="auto", cmap="viridis", vmin=0)
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    across, down = _every(experts), _every(layers)
    axes.set_xticks(range(experts)[across])
    axes.set_yticks(range(layers)[down], list(map(str, routing))[down])
    axes.set_title(title)
    figure.colorbar(image, label=f"share of the layer's tokens (even: {1 / experts:.3f})")
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise OutputError(f"{file} cannot be drawn: {error}.") from None


def _every(number: int) -> slice:
    """Which of so many ticks get a number, so that none covers the next one."""
    return slice(None, None, 1 + (number - 1) // _MOST_TICKS)
