"""docs/design.md, "From a command to its work": each function that it names calls the next."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.core.test_house import PACKAGE
from tests.pages.blocks import text_of

MOST_CALLS = 5


def flows() -> list[list[str]]:
    page = text_of("docs/design.md")
    section = page.partition("## From a command to its work")[2].partition("\n## ")[0]
    bullets = re.findall(r"^- (.*(?:\n  .*)*)", section, re.MULTILINE)
    return [re.findall(r"`([\w.]+)`", bullet) for bullet in bullets]


def opened(dotted: str) -> tuple[str, ast.Module, list[str]]:
    """The module of a dotted name, and what follows: a function, or a class and its method."""
    parts = dotted.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        path = PACKAGE.joinpath(*parts[:cut]).with_suffix(".py")
        if path.is_file():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            return ".".join(parts[:cut]), tree, parts[cut:]
    raise AssertionError(f"there is no module of {dotted}")


def found(tree: ast.Module, names: list[str]) -> ast.AST:
    node: ast.AST = tree
    for name in names:
        kinds = (ast.FunctionDef, ast.ClassDef)
        body = getattr(node, "body", [])
        [node] = [one for one in body if isinstance(one, kinds) and one.name == name]
    return node


def names_in(module: str, tree: ast.Module) -> dict[str, str]:
    """What names of a module stand for, by their dotted names without the package's."""
    known = {n.name: f"{module}.{n.name}" for n in tree.body if isinstance(n, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("quantkit"):
            home = (node.module or "").removeprefix("quantkit").removeprefix(".")
            known |= {a.asname or a.name: f"{home}.{a.name}".strip(".") for a in node.names}
    return known


def called(node: ast.AST, known: dict[str, str]) -> Iterator[str]:
    """What is called; of a method of something unknown, its name after a dot."""
    for call in ast.walk(node):
        if not isinstance(call, ast.Call):
            continue
        match call.func:
            case ast.Name(name):
                yield known.get(name, name)
            case ast.Attribute(ast.Name(name), method):
                yield f"{known[name]}.{method}" if name in known else f".{method}"
            case ast.Attribute(_, method):
                yield f".{method}"


@pytest.mark.parametrize("flow", flows(), ids=lambda flow: " ".join(flow[:2]))
def test_each_calls_the_next(flow: list[str]) -> None:
    assert flow[0].startswith("cli.")
    assert len(flow) <= MOST_CALLS
    for caller, callee in pairwise(flow):
        module, tree, names = opened(caller)
        known = names_in(module, tree)
        calls = set(called(found(tree, names), known))
        home, there, wanted = opened(callee)
        assert found(there, wanted)
        if len(wanted) == 1:
            assert callee in calls, f"{caller} does not call {callee}"
        else:
            kind, method = wanted
            assert f".{method}" in calls, f"{caller} calls no {method}"
            assert f"{home}.{kind}" in known.values(), f"{caller} knows no {kind}"


def test_builds_and_calibrations_are_walked() -> None:
    assert {flow[0] for flow in flows()} >= {"cli.build.build", "cli.calibrate.calibrate"}
