"""What some rows of an expression are made of, and that they are the rows of the whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.checkpoint.converter.provision import find_converter
from quantkit.core.child import child_environment

SCRIPT = Path(__file__).with_name("expressions_apart.py")
# Rows along their first axis that leaves are read for, for one row; all where nothing is known.
WHOLE = {"matrix transposed": 12, "all axes": 6, "sorted": 12, "summed": 12}
SEVERAL = {
    "sum": 2,
    "row by row": 9,
    "stacked": 12,
    "stacked inside": 2,
    "side by side": 2,
    "heads": 4,
    "scaled": 2,
    "gathered": 13,
    "nibbles": 2,
}
DIRECT = {
    *("itself", "widened", "stacked", "concatenated", "experts' first rows", "an expert"),
    *("some experts", "chunk", "chunk inside", "split", "squeezed", "numpy"),
}


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[int, bool]]:
    """By expression: how many rows are read for one in its middle, and whether they lie there."""
    converter = find_converter()
    done = subprocess.run(
        [sys.executable, "-P", SCRIPT, converter.tree, converter.packages],
        env={**child_environment(), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: (n, direct) for name, n, direct in map(json.loads, done.stdout.splitlines())}


def test_no_more_is_read_than_is_needed(found: dict[str, tuple[int, bool]]) -> None:
    """The script has compared the values of all kinds of rows already."""
    wanted = {name: {**WHOLE, **SEVERAL}.get(name, 1) for name in found}
    assert {name: n for name, (n, _) in found.items()} == wanted
    assert len(found) > 30


def test_what_lies_in_the_files_is_read_there(found: dict[str, tuple[int, bool]]) -> None:
    assert {name for name, (_, direct) in found.items() if direct} == DIRECT
