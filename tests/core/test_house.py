"""What holds for every module of the house: its length, and whose names it takes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import quantkit

PACKAGE = Path(quantkit.__file__).parent
MOST_LINES = 400
# How the docstring of a longer file says why it is one.
REASON = "Long because"


def modules() -> Iterator[tuple[Path, ast.Module, int]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        yield path.relative_to(PACKAGE), ast.parse(source), len(source.splitlines())


def test_a_long_file_says_why_it_is_long() -> None:
    long = [
        f"{path}: {lines} lines"
        for path, tree, lines in modules()
        if lines > MOST_LINES and REASON not in (ast.get_docstring(tree) or "")
    ]
    assert not long


def test_nobody_takes_what_is_private_to_another() -> None:
    taken = []
    for path, tree, _ in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not node.level:
                parts = (node.module or "").split(".")
                names = [*parts, *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            else:
                continue
            if parts_private := [n for n in names if n.startswith("_") and not n.endswith("__")]:
                taken.append(f"{path}, line {node.lineno}: {', '.join(parts_private)}")
    assert not taken
