"""The picture in the README is what its script draws of the figures beside it."""

import json
import re
from pathlib import Path

import matplotlib
import pytest

from benchmarks.picture import FIGURES, FIXED, PICTURES, SCHEMES, SEARCHED, draw


@pytest.mark.parametrize("name", SCHEMES)
def test_it_is_as_drawn(name: str, tmp_path: Path) -> None:
    kept = PICTURES / f"size-against-kld{name}.svg"
    by = re.search(r"Matplotlib v([\d.]+)", kept.read_text(encoding="utf-8"))
    assert by is not None
    if by[1] != matplotlib.__version__:
        pytest.skip(f"it was drawn by matplotlib {by[1]}, and letters differ by version")
    draw(json.loads(FIGURES.read_text(encoding="utf-8")), SCHEMES[name], tmp_path / kept.name)
    assert (tmp_path / kept.name).read_bytes() == kept.read_bytes()


def test_its_figures_are_of_both_kinds() -> None:
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    assert [point["name"] for point in figures["fixed"]] == list(FIXED)
    by_name = {point["name"]: point for point in figures["fixed"]}
    for quant, found in zip(SEARCHED, figures["searched"], strict=True):
        assert 0 <= by_name[quant]["bytes"] - found["bytes"] < 0.005 * found["bytes"]
