"""The check of a GPU: what it does where there is none, and with what packages."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What a machine with PyTorch and transformers may lack; the check must do without.
BLOCKED = ("gguf", "llama_cpp", "numba", "rich", "typer")


def checked(*options: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
        "runpy.run_module('benchmarks.gpu_check', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_without_a_gpu_nothing_counts_as_checked() -> None:
    import torch

    done = checked("--experts", "0")
    if torch.cuda.is_available():
        assert done.returncode == 0, done.stdout
        return
    assert done.returncode == 2, done.stderr
    assert "no GPU" in done.stdout


@pytest.mark.native
def test_the_cpu_agrees_with_itself() -> None:
    done = checked("--device", "cpu", "--models", "tiny-mistral", "--experts", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("differ by 0.0e+00") == 1
    assert done.stdout.endswith("The results agree.\n")
