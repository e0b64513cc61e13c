"""The checkpoints of `small.SMALL` and `stored.STORED`, and the GGUFs that llama.cpp makes of them.

    ggufs = small_ggufs(tmp_path_factory)                    # all, once per session: a minute
    ggufs = small_ggufs(tmp_path_factory, ["gemma3"])        # or some
    folders = small_checkpoints(tmp_path_factory, ["gemma3"])
    folders = stored_checkpoints(tmp_path_factory, ["qwen3-gptq4"])
    ggufs = stored_ggufs(tmp_path_factory, ["qwen3-gptq4"], "f32")
    ggufs = stored_ggufs(tmp_path_factory, ["gemma3-vision"], mmproj=True)

Two processes make all that is asked for at once, because most of the time goes into importing
torch: one of ours writes checkpoints, one of the converter's environment converts them. What a
session has made already, in any of its workers, is not made again, and nobody may write to it.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import native_tools
from tests.architectures.small import SMALL
from tests.architectures.stored import STORED

ROOT = Path(__file__).resolve().parents[2]
CONVERTER = Path(__file__).with_name("converter.py")
TIME_LIMIT_SECONDS = 1800


def small_ggufs(
    factory: pytest.TempPathFactory, names: Iterable[str] = tuple(SMALL)
) -> dict[str, Path]:
    """GGUFs by name of `SMALL`. The checkpoints are deleted, but those that somebody asked for."""
    with shared(factory, "small-ggufs") as folder:
        wanted = {name: folder / f"{name}.gguf" for name in names}
        missing = [name for name, file in wanted.items() if not file.exists()]
        kept = [name for name in missing if (folder / name).exists()]
        convert(making(missing, folder), {name: wanted[name] for name in missing})
        for name in set(missing) - set(kept):
            shutil.rmtree(folder / name)
    return wanted


def small_checkpoints(
    factory: pytest.TempPathFactory, names: Iterable[str] = tuple(SMALL)
) -> dict[str, Path]:
    """Folders of checkpoints by name of `SMALL`, there until the session ends."""
    with shared(factory, "small-ggufs") as folder:
        return making(names, folder)


def stored_checkpoints(
    factory: pytest.TempPathFactory, names: Iterable[str] = tuple(STORED)
) -> dict[str, Path]:
    """Folders of checkpoints by name of `STORED`, there until the session ends."""
    with shared(factory, "stored") as folder:
        return making(names, folder)


def stored_ggufs(
    factory: pytest.TempPathFactory,
    names: Iterable[str],
    outtype: str = "bf16",
    *,
    mmproj: bool = False,
) -> dict[str, Path]:
    """GGUFs by name of `STORED`, or the projectors that the converter writes with ``--mmproj``.

    Args:
        factory: pytest's.
        names: of checkpoints that the converter converts (``refused`` is None), and those that
            have a projector if that is asked for.
        outtype: the converter's: "f32", "f16", "bf16", "q8_0".
        mmproj: whether to make the projectors.

    """
    with shared(factory, "stored") as folder:
        prefix = "mmproj-" if mmproj else ""
        wanted = {name: folder / f"{prefix}{name}-{outtype}.gguf" for name in names}
        missing = {name: file for name, file in wanted.items() if not file.exists()}
        options = ("--mmproj",) if mmproj else ()
        convert(making(missing, folder), missing, outtype, options)
    return wanted


@contextmanager
def shared(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder that all workers of this session have in common, for one of them at a time."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def making(names: Iterable[str], folder: Path) -> dict[str, Path]:
    """The folders of checkpoints below one; those that are not there are made."""
    wanted = {name: folder / name for name in names}
    make_checkpoints([name for name, made in wanted.items() if not made.exists()], folder)
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
    convert(checkpoints, ggufs)
    return ggufs


def convert(
    checkpoints: Mapping[str, Path],
    ggufs: Mapping[str, Path],
    outtype: str = "bf16",
    options: tuple[str, ...] = (),
) -> None:
    """Make a GGUF of each of these checkpoints, or raise AssertionError for those that fail."""
    if not ggufs:
        return
    # Under another name until they are whole, as a run that is killed leaves them.
    partial = {name: file.with_suffix(".partial") for name, file in ggufs.items()}
    jobs = [
        [str(checkpoints[name]), str(file), ["--outtype", outtype, *options_of(name), *options]]
        for name, file in partial.items()
    ]
    folder = next(iter(ggufs.values())).parent
    listing = folder / "jobs.json"
    listing.write_text(json.dumps(jobs))
    native_tools.run(
        [native_tools.PYTHON, CONVERTER, native_tools.CONVERTER, listing],
        makes=Path(f"{listing}.done"),
    )
    require(folder, [f"{file.name}.failed" for file in partial.values()])
    for name, file in partial.items():
        file.rename(ggufs[name])


def options_of(name: str) -> tuple[str, ...]:
    """The converter's options for a model."""
    return STORED[name].options if name in STORED else SMALL[name].options


def make_checkpoint(name: str, folder: Path) -> Path:
    """Make one checkpoint below a folder, and return its own folder."""
    return make_checkpoints([name], folder)[name]


def make_checkpoints(names: Iterable[str], folder: Path) -> dict[str, Path]:
    """Make checkpoints below a folder, each in one of its name."""
    wanted = list(names)
    if not wanted:
        return {}
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
