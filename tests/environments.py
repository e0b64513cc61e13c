"""Environments of their own for tools that need other libraries than quantkit's.

A file of constraints says what is in one. The first call makes it, which takes some minutes and
1 to 2 GB of disk; it is kept until that file changes.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).resolve().parents[1] / "vendor"


def python(name: str) -> Path:
    """The interpreter of ``vendor/NAME/constraints.txt``'s environment, made now if need be."""
    constraints, folder = VENDOR / name / "constraints.txt", VENDOR / "build" / name
    stamp, wanted = folder / "stamp", hashlib.sha256(constraints.read_bytes()).hexdigest()
    with constraints.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.is_file() or stamp.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            run([sys.executable, "-m", "venv", folder])
            pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
            run([*pip, "install", "--quiet", "--requirement", constraints])
            stamp.write_text(wanted)
    return folder / "bin" / "python"


def run(command: list[Any]) -> None:
    """Run a command offline; it must succeed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, "\n".join(done.stdout.splitlines()[-20:])
