"""Names of points in a picture, placed so that they cover neither each other nor anything drawn."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

_AWAY = (7.0, 13.0, 20.0, 28.0, 38.0, 50.0)  # from a point to its name, in points of type
_DIRECTIONS = ((1, 1), (1, 0), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, 0), (-1, -1))
_POINT = 4.0  # the radius that a drawn point takes, in points of type
_GAP = 1.5  # pixels between a name and whatever is beside it
_ALONG = 24  # places of a line's segment that are kept free


def place_labels(
    figure: Any,
    axes: Any,
    places: Sequence[tuple[float, float]],
    names: Sequence[str],
    *,
    lines: Sequence[Sequence[tuple[float, float]]] = (),
    also: Sequence[tuple[float, float]] = (),
    **style: Any,
) -> list[Any]:
    """Write each point's name at the nearest place that is free, with a thin line if it is far.

    To be called when everything else is drawn, and with the axes' limits final.

    Args:
        figure: a matplotlib figure; its layout is settled here.
        axes: where the points are.
        places: the points, in the units of the data.
        names: one for each.
        lines: the corners of lines that no name may cross.
        also: more points that no name may cover.
        style: of the text, such as ``fontsize`` and ``color``.

    Returns:
        the matplotlib annotations, one per name.

    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    figure.draw_without_rendering()
    pixels = figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    points = axes.transData.transform([*places, *also]).reshape(-1, 2)
    taken = [_around(point, _POINT * pixels) for point in points]
    taken += [_around(point, pixels) for line in lines for point in _along(axes, line)]
    written = []
    for name, place, point in zip(names, places, points, strict=False):
        text = axes.annotate(name, place, (0, 0), textcoords="offset points", **style)
        text.set_in_layout(False)  # it is inside of the axes
        box = text.get_window_extent(renderer)
        size = np.array([box.width, box.height])
        tried = [
            (away, _corner(point, size, way, away * pixels))
            for away in _AWAY
            for way in _DIRECTIONS
        ]
        away, corner = min(tried, key=lambda one: _cost(one[1], size, taken, frame))
        text.set_position((corner - point) / pixels)
        taken.append(np.array([*(corner - _GAP), *(corner + size + _GAP)]))
        if away > _AWAY[0]:
            middle = np.clip(point, corner, corner + size)
            ends = axes.transData.inverted().transform([point, middle])
            axes.plot(*ends.T, color="#888888", linewidth=0.6, zorder=0)
        written.append(text)
    return written


def _around(point: Any, radius: float) -> Any:
    return np.array([*(point - radius), *(point + radius)])


def _along(axes: Any, line: Sequence[tuple[float, float]]) -> Any:
    """Points along a line, in pixels."""
    if len(line) < 2:
        return np.empty((0, 2))
    corners = axes.transData.transform(line)
    steps = np.linspace(0, 1, _ALONG, endpoint=False)[:, None]
    return np.concatenate([a + (b - a) * steps for a, b in pairwise(corners)])


def _corner(point: Any, size: Any, way: tuple[int, int], away: float) -> Any:
    """The lower left corner of a name that lies in some direction of its point."""
    direction = np.array(way)
    return point + direction * away / np.hypot(*way) - size * (1 - direction) / 2


def _cost(corner: Any, size: Any, taken: Sequence[Any], frame: Any) -> float:
    """How much of what is taken, or of what is outside, a name would cover; 0 is free."""
    low, high = corner, corner + size
    boxes = np.array(taken)
    overlap = np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low)
    covered = float(np.prod(np.clip(overlap, 0, None), axis=1).sum())
    outside = max(frame.x0 - low[0], high[0] - frame.x1, frame.y0 - low[1], high[1] - frame.y1, 0)
    return covered + 100.0 * float(outside)
