"""A build to publish: two quants of tiny-mixtral, smoke-tested, made once and copied."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantkit.build.engine import Check
from quantkit.verify.smoke import smoke
from tests.build.builds import build
from tests.parity.cases import TRAINED

SOURCE = TRAINED / "tiny-mixtral"
Q4 = "Tiny-Mixtral-8x2.1M-Q4_K_M"
Q2 = "Tiny-Mixtral-8x2.1M-Q2_K"
REPO = "someone/Tiny-Mixtral-GGUF"


def check(path: Path) -> Check:
    result = smoke(path, threads=1)
    return Check(result.ok, result.verdict, asdict(result))


def make(folder: Path) -> Path:
    build(SOURCE, folder, "q4_k_m", "q2_k", jobs=1, check=check)
    return folder


def copy(folder: Path, to: Path) -> Path:
    """The build in a folder of its own; files that a test changes are copies."""
    return Path(shutil.copytree(folder, to))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "quantkit.json"
    manifest = json.loads(path.read_text())
    change(manifest["artifacts"])
    path.write_text(json.dumps(manifest))


def damage(file: Path) -> None:
    """Another byte in the middle, the size and time as before."""
    times = file.stat()
    with file.open("r+b") as stream:
        stream.seek(times.st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
