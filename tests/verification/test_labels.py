"""Names in pictures cover neither each other nor the points."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from quantkit.verification.labels import place_labels

# A publisher's set: many files whose sizes and divergences are nearly the same.
SIZES = (
    3.2,
    3.22,
    3.5,
    3.52,
    3.9,
    3.95,
    4.0,
    4.5,
    4.52,
    4.55,
    4.6,
    4.85,
    5.2,
    5.25,
    5.57,
    6.37,
    6.4,
)
KLDS = 0.6 * np.exp(-1.15 * np.array(SIZES))
NAMES = tuple(f"q{i % 7 + 2}_k_{'sml'[i % 3]}" for i in range(len(SIZES)))


def boxes(places: Any, size: tuple[float, float]) -> tuple[list[Any], Any, Any]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*places, strict=True))
    axes.set_yscale("log")
    axes.margins(0.1)
    texts = place_labels(figure, axes, places, NAMES, lines=[places], fontsize=8)
    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    figure.draw_without_rendering()
    points = axes.transData.transform(places)
    frame = axes.get_window_extent(renderer)
    return [text.get_window_extent(renderer) for text in texts], points, frame


@pytest.mark.parametrize("size", [(8, 5), (7.6, 4.2), (6, 4)])
def test_no_name_covers_another_or_a_point(size: tuple[float, float]) -> None:
    places = list(zip(SIZES, KLDS, strict=True))
    found, points, frame = boxes(places, size)
    assert len(found) == len(NAMES)
    assert [pair for pair in combinations(found, 2) if pair[0].overlaps(pair[1])] == []
    assert [box for box in found if any(box.contains(x, y) for x, y in points)] == []
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in found)
    assert all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in found)


def test_names_at_their_points_would_cover_each_other() -> None:
    """What the test above asks is not given for free."""
    found, points, _ = boxes(list(zip(SIZES, KLDS, strict=True)), (8, 5))
    plain = [
        box.translated(*(point - (box.x0, box.y0)))
        for box, point in zip(found, points, strict=True)
    ]
    assert any(a.overlaps(b) for a, b in combinations(plain, 2))
