"""The programs of docs/python.md run, print what the page says, and pass mypy --strict."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages.blocks import ROOT, blocks_of
from tests.pages.running import matches, place

PAGE = "docs/python.md"
# What is printed stands behind it, or on the next line.
_PRINTED = re.compile(r"^ *print\(.*\)(?:  |\n *)# (.*)$", re.MULTILINE)


def program() -> str:
    """All of the page as one program: what a block defines, later ones use."""
    return "\n\n".join(block.text for block in blocks_of(PAGE) if block.language == "python")


def test_the_page_runs(tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text(program(), encoding="utf-8")
    with place(tmp_path) as where:
        code, printed = where.run("python page.py 2> errors.txt")
    assert code == 0, (tmp_path / "errors.txt").read_text(encoding="utf-8")
    said = _PRINTED.findall(program())
    assert len(said) > 5
    assert matches("\n".join(said), printed), printed


@pytest.mark.native  # a minute or two, where mypy has not been run before
def test_a_type_checker_passes_the_page(tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text(program(), encoding="utf-8")
    config = ["--strict", "--config-file", str(ROOT / "pyproject.toml")]
    words = [sys.executable, "-m", "mypy", *config, str(tmp_path / "page.py")]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout
