"""What differs between systems: macOS has no fdatasync, Windows is refused in one sentence."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from quantkit.core import system
from tests.cli.command import quantkit, refusal


def test_windows_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "sys", SimpleNamespace(platform="win32"))
    assert "install WSL" in refusal(quantkit("quants"))


def test_windows_comes_as_far_as_that_sentence() -> None:
    """It has neither of these modules, and not all of these functions."""
    code = (
        "import os, sys\n"
        "for name in ('fcntl', 'resource'): sys.modules[name] = None\n"
        "for name in ('preadv', 'pwrite', 'fdatasync', 'O_NOFOLLOW', 'O_NONBLOCK'):\n"
        "    delattr(os, name)\n"
        "import quantkit.cli.main as m\n"
        "import quantkit.core.system as s, types\n"
        "s.sys = types.SimpleNamespace(platform='win32')\n"
        "m.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: quantkit does not run on Windows itself; install WSL")


def test_macos_has_no_fdatasync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fdatasync", raising=False)
    with (tmp_path / "a").open("wb") as file:
        file.write(b"a")
        system.sync_data(file.fileno())


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert system.lock(first)
    assert not system.lock(second)
    os.close(first)
    assert system.lock(second)
    os.close(second)
