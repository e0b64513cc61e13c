"""The smoke test of a projector: llama.cpp loads it, with the model that it is for.

Of the model a header is enough: it is written to a sparse file, which llama.cpp loads without
allocating anything.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from quantkit.core.errors import GGUFError
from quantkit.verification.hollow import HeaderOnly, complaint, write_hollow
from quantkit.verification.llama import Run, run_worker
from quantkit.verification.machine import usable_cores
from quantkit.verification.smoke import SmokeResult, compare_files, failed, judge, time_limit


def smoke_projector(
    artifact: Path,
    model: Sequence[HeaderOnly] = (),
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
        raise GGUFError(f"{artifact} does not exist; build or copy it again.")
    if damage := compare_files([artifact], expected or {}):
        return failed(damage)
    limit = timeout or time_limit(artifact.stat().st_size)
    return judge(_load(artifact, model, takes, threads, limit))


def projector_refusal(
    projector: HeaderOnly, model: Sequence[HeaderOnly], takes: Sequence[str]
) -> str | None:
    """Why llama.cpp does not load a projector that has not been built yet.

    Args:
        projector: its file.
        model: the files of the model that it is for.
        takes: what it must take: ``vision``, ``audio``.

    Returns:
        one line; None where it loads, or where llama.cpp cannot be asked.

    Raises:
        NativeError: llama.cpp is not installed.

    """
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        file = write_hollow(Path(folder), [projector])
        return complaint(_load(file, model, takes, None, time_limit(projector.n_bytes)))


def _load(
    file: Path,
    model: Sequence[HeaderOnly],
    takes: Sequence[str],
    threads: int | None,
    timeout: float,
) -> Run:
    with tempfile.TemporaryDirectory(prefix="quantkit-") if model else nullcontext() as folder:
        request = {
            "task": "projector",
            "file": str(file),
            "model": str(write_hollow(Path(folder), model)) if folder else None,
            "takes": list(takes),
            "threads": threads or usable_cores(),
        }
        return run_worker(request, timeout=timeout)
