"""`make demo` installs what it needs and no more, and ends with a command as it has to be typed."""

import subprocess
import tomllib
from pathlib import Path

from tests.pages.blocks import ROOT
from tests.pages.test_options import unknown

_LARGE = ("torch", "transformers", "ray", "accelerate", "bitsandbytes", "matplotlib")


def _said(target: str, venv: Path) -> list[str]:
    command = ["make", "--dry-run", "--no-print-directory", f"VENV={venv}", target]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()


def test_a_fresh_demo_installs_quantkit_alone(tmp_path: Path) -> None:
    installs = [line for line in _said("demo", tmp_path) if " install " in line]
    assert installs
    assert not [line for line in installs if "[" in line]
    [quantkit] = [line for line in installs if "--editable" in line]
    assert quantkit.endswith("--editable .")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [asked for asked in project["dependencies"] if asked.startswith(_LARGE)]


def test_tests_install_the_rest_after_a_demo(tmp_path: Path) -> None:
    (tmp_path / ".installed").touch()
    assert [line for line in _said("test", tmp_path) if line.endswith("--editable '.[dev]'")]


def test_a_demo_after_the_tests_installs_nothing(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for made in ("bin/pip", ".ready"):
        (tmp_path / made).touch()
    assert not [line for line in _said("demo", tmp_path) if " install " in line]


def test_the_demo_ends_with_a_command_to_type() -> None:
    last = _said("demo", Path(".venv"))[-1].removeprefix('echo "').removesuffix('"').strip()
    assert last.startswith(".venv/bin/quantkit ")
    assert unknown(last) == []
