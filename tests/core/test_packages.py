"""What this package is called, and what its messages tell people to install."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from quantkit.core.errors import MissingPackageError
from quantkit.core.packages import DISTRIBUTION, EXTRAS, install, require
from quantkit.verification.doctor import Finding, find_namesakes

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def bare(requirement: str) -> str:
    match = re.match(r"[\w.-]+(\[[\w,]+\])?", requirement.strip("'"))
    assert match is not None
    return match[0]


def test_the_names_are_those_of_the_project() -> None:
    assert PROJECT["name"] == DISTRIBUTION != "quantkit"
    extras = {name: set(map(bare, wanted)) for name, wanted in EXTRAS.items()}
    listed = dict(PROJECT["optional-dependencies"])
    del listed["dev"]
    assert extras == {name: set(map(bare, wanted)) for name, wanted in listed.items()}


def test_nothing_tells_people_to_install_somebody_elses_quantkit() -> None:
    """The name without ours behind it is another package on the index."""
    for pattern in ("*.md", "docs/*.md", "quantkit/**/*.py", "quantkit/**/*.jinja", "*.toml"):
        for file in ROOT.glob(pattern):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"pip install '?quantkit(?!-)\b", text), file
            assert "quantkit[" not in text, file


def test_a_missing_package_is_named_itself() -> None:
    with pytest.raises(MissingPackageError) as caught:
        require("no_such_module", "matplotlib", "plot", "--plot")
    said = "--plot needs matplotlib, which is not installed; pip install matplotlib."
    assert str(caught.value) == said
    assert install("ray") == "pip install 'ray[client]'"


def test_another_package_of_the_same_import_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def distribute(name: str, package: str) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-0.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.9\n")
        (info / "RECORD").write_text(f"{package}/__init__.py,,\n")

    before = {finding.name for finding in find_namesakes()}
    distribute("LLM.QuantKit", "quantkit")
    distribute(DISTRIBUTION, "quantkit")
    distribute("something", "something")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    found: dict[str, Finding] = {finding.name: finding for finding in find_namesakes()}
    assert found.keys() - before == {"another quantkit: LLM.QuantKit"}
    finding = found["another quantkit: LLM.QuantKit"]
    assert finding.status == "note"
    assert finding.value.startswith("0.9 ")
    assert "pip uninstall LLM.QuantKit" in str(finding.advice)
