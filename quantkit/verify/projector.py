"""The smoke test of a projector: llama.cpp loads it, with the model that it is for.

Of the model a header is enough: it is written to a sparse file, which llama.cpp loads without
allocating anything.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from quantkit.core.errors import GGUFError
from quantkit.verify.hollow import Hollow, write_hollow
from quantkit.verify.llama import run_worker
from quantkit.verify.machine import usable_cores
from quantkit.verify.smoke import SmokeResult, compare_files, failed, judge, time_limit


def smoke_projector(
    artifact: Path,
    model: Sequence[Hollow] = (),
    *,
    takes: Sequence[str] = (),
    timeout: float | None = None,
    threads: int | None = None,
    expected: Mapping[str, tuple[int, str]] | None = None,
) -> SmokeResult:
    """Load a projector in llama.cpp and ask it what it takes.

    Args:
        artifact: its GGUF.
        model: the files of a model that it is for, which llama.cpp compares it with; none for
            whatever model.
        takes: what it must take: ``vision``, ``audio``; nothing for any of them.
        timeout: seconds; by default they grow with the size.
        threads: threads llama.cpp computes with; by default the cores this process may use.
        expected: bytes and sha256 in hex by file name, as `smoke.smoke` takes them.

    Raises:
        GGUFError: it is not there.
        NativeError: llama.cpp is not installed, or does not run on this machine at all.

    """
    artifact = artifact.absolute()
    if not artifact.is_file():
        raise GGUFError(f"{artifact} is not there; build or copy it again.")
    if damage := compare_files([artifact], expected or {}):
        return failed(damage)
    with tempfile.TemporaryDirectory(prefix="quantkit-") if model else nullcontext() as folder:
        request = {
            "task": "projector",
            "file": str(artifact),
            "model": str(write_hollow(Path(folder), model)) if folder else None,
            "takes": list(takes),
            "threads": threads or usable_cores(),
        }
        limit = timeout or time_limit(artifact.stat().st_size)
        return judge(run_worker(request, timeout=limit))
