"""The GGUFs that llama.cpp's converter makes of `small.SMALL`, and the checkpoints before it.

    ggufs = small_ggufs(tmp_path_factory)              # all, once per session: about a minute
    ggufs = small_ggufs(tmp_path_factory, ["gemma3"])  # or some

Two processes make all that is asked for at once, because most of the time goes into importing
torch: one of ours writes checkpoints, one of the converter's environment converts them.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests import native_tools
from tests.architectures.small import SMALL

ROOT = Path(__file__).resolve().parents[2]
CONVERTER = Path(__file__).with_name("converter.py")
TIME_LIMIT_SECONDS = 1800


def small_ggufs(
    factory: pytest.TempPathFactory, names: Iterable[str] = tuple(SMALL)
) -> dict[str, Path]:
    """GGUFs by name of `SMALL`, which nobody may write to.

    What this session has made already, in any of its workers, is not made again.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / "small-ggufs"
    folder.mkdir(exist_ok=True)
    wanted = {name: folder / f"{name}.gguf" for name in names}
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if missing := [name for name, file in wanted.items() if not file.exists()]:
            make_ggufs(missing, folder)
            for name in missing:
                shutil.rmtree(folder / name)
    return wanted


def make_gguf(name: str, folder: Path) -> Path:
    """Make one checkpoint and its GGUF below a folder, and return the GGUF."""
    return make_ggufs([name], folder)[name]


def make_ggufs(names: Iterable[str], folder: Path) -> dict[str, Path]:
    """Make checkpoints and their GGUFs below a folder: ``NAME/`` and ``NAME.gguf``.

    Raises:
        AssertionError: one could not be made; the message has what was said of each.

    """
    checkpoints = make_checkpoints(names, folder)
    ggufs = {name: folder / f"{name}.gguf" for name in checkpoints}
    # Under another name until they are whole, as a run that is killed leaves them.
    jobs = [
        [
            str(checkpoints[name]),
            str(file.with_suffix(".partial")),
            ["--outtype", "bf16", *SMALL[name].options],
        ]
        for name, file in ggufs.items()
    ]
    listing = folder / "jobs.json"
    listing.write_text(json.dumps(jobs))
    native_tools.run(
        [native_tools.PYTHON, CONVERTER, native_tools.CONVERTER, listing],
        makes=Path(f"{listing}.done"),
    )
    require(folder, [f"{name}.partial.failed" for name in ggufs])
    for file in ggufs.values():
        file.with_suffix(".partial").rename(file)
    return ggufs


def make_checkpoint(name: str, folder: Path) -> Path:
    """Make one checkpoint below a folder, and return its own folder."""
    return make_checkpoints([name], folder)[name]


def make_checkpoints(names: Iterable[str], folder: Path) -> dict[str, Path]:
    """Make checkpoints below a folder, each in one of its name."""
    wanted = list(names)
    command = [sys.executable, "-m", "tests.architectures.make", str(folder), *wanted]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIME_LIMIT_SECONDS,  # time: one that hangs ends
        check=False,
    )
    assert done.returncode == 0, native_tools.tail(done.stdout)
    require(folder, [f"{name}.failed" for name in wanted])
    return {name: folder / name for name in wanted}


def require(folder: Path, failures: Iterable[str]) -> None:
    """Fail with what is in any of these files."""
    said = [
        f"{name}: {(folder / name).read_text()}" for name in failures if (folder / name).exists()
    ]
    assert not said, "\n".join(said)
