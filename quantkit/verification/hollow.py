"""Whether llama.cpp loads a GGUF that has not been built yet: its header is enough to ask."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.core.writing import write_file
from quantkit.verification.llama import Run, run_worker
from quantkit.verification.machine import memory

_TIMEOUT = 300.0
# What a dry run takes besides: Python, llama.cpp, vocabularies, a context's cells.
_OF_THE_PROCESS = 2**30
_F16 = 1  # ggml's number
_SHORT = {"n_ctx": 256, "n_seq": 1, "kv_type": _F16, "flash_attn": False}
# What says nothing of the file: this llama.cpp is too old for it, or this machine too small.
_OF_OTHERS = (
    *("unknown model architecture", "unknown projector type"),
    *("memory", "failed to allocate", "bad_alloc"),
)
# What those who tell the reason say themselves.
_AGAIN = re.compile(r"^llama\.cpp does not load [^:]+: ")


@dataclass(frozen=True, slots=True)
class HeaderOnly:
    """A GGUF file without its weights: its name, its header, and how long it is."""

    name: str
    header: bytes
    n_bytes: int


def write_hollow(folder: Path, files: Sequence[HeaderOnly]) -> Path:
    """Files with real headers and holes for their weights; the first of them."""
    for file in files:
        write_file(folder / file.name, file.header, file.n_bytes)
    return folder / files[0].name


def most_bytes() -> int | None:
    """What a dry load may take, for states are allocated even then; None where nobody knows."""
    free = memory()
    return free.available // 2 + _OF_THE_PROCESS if free else None


def refusal(files: Sequence[HeaderOnly]) -> str | None:
    """Why llama.cpp does not load a model: a tensor or a key is missing, or not what it can be.

    It is written to sparse files, which llama.cpp loads without allocating anything.

    Args:
        files: of the model, the first one first.

    Returns:
        one line; None where it loads, or where llama.cpp cannot be asked.

    Raises:
        NativeError: llama.cpp is not installed.

    """
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        request = {
            "task": "buffers",
            "file": str(write_hollow(Path(folder), files)),
            "dry": True,
            "gpu": False,
            "most_bytes": most_bytes(),
            "settings": [_SHORT],
        }
        run = run_worker(request, timeout=_TIMEOUT)
    return complaint(run)


def complaint(run: Run) -> str | None:
    """What llama.cpp has against a file that a worker asked it to load.

    Returns:
        one line, without its full stop; None where it loads it, or says nothing of the file.

    """
    if run.signal == "SIGABRT":  # a check of its own failed
        reason, said = str(run.failure), run.log
    else:
        result = run.result or {}
        reason = said = str(result.get("refused") or result.get("verdict") or "")
    if reason in ("", "passed") or any(words in said for words in _OF_OTHERS):
        return None
    return _AGAIN.sub("", reason).rstrip(".")
