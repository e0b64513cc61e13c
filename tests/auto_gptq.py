"""auto-gptq, the GPTQ format's reference reader, in an environment of its own.

``vendor/auto-gptq/constraints.txt`` says what is in it. The first call makes it, which takes some
minutes and 2 GB of disk; it is kept until that file changes.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VENDOR = Path(__file__).resolve().parents[1] / "vendor"
CONSTRAINTS = VENDOR / "auto-gptq" / "constraints.txt"
FOLDER = VENDOR / "build" / "auto-gptq"
TIME_LIMIT_SECONDS = 1200

LOGITS = """
import sys
import numpy as np
import torch
from auto_gptq import AutoGPTQForCausalLM
tokens, *folders = sys.argv[1:]
for number, folder in enumerate(folders):
    model = AutoGPTQForCausalLM.from_quantized(
        folder, device="cpu", use_triton=False, disable_exllama=True, disable_exllamav2=True,
        torch_dtype=torch.float32,
    )
    quantized = [m for m in model.modules() if type(m).__name__ == "QuantLinear"]
    assert quantized, "nothing was loaded as quantized"
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(np.load(tokens))).logits
    np.save(f"{tokens}.{number}.npy", logits.float().numpy())
"""


def python() -> Path:
    """The environment's interpreter, made now if it is not there."""
    stamp, wanted = FOLDER / "stamp", hashlib.sha256(CONSTRAINTS.read_bytes()).hexdigest()
    with CONSTRAINTS.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.is_file() or stamp.read_text() != wanted:
            shutil.rmtree(FOLDER, ignore_errors=True)
            _run([sys.executable, "-m", "venv", FOLDER])
            pip = [FOLDER / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
            _run([*pip, "install", "--quiet", "--requirement", CONSTRAINTS])
            stamp.write_text(wanted)
    return FOLDER / "bin" / "python"


def logits(
    artifacts: Sequence[Path], tokens: NDArray[np.int64], work: Path
) -> list[NDArray[np.float32]]:
    """What auto-gptq computes on the CPU with each: (chunks, context, vocabulary)."""
    file = work / "tokens.npy"
    np.save(file, tokens)
    _run([python(), "-c", LOGITS, file, *artifacts])
    return [np.load(f"{file}.{number}.npy") for number in range(len(artifacts))]


def _run(command: list[Any]) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        timeout=TIME_LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, "\n".join(done.stdout.splitlines()[-20:])
