"""What a projector must do to pass the smoke test. Runs in the worker: llama.cpp may crash."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quantkit.core.errors import SmokeError
from quantkit.verification.file_size import check_size
from quantkit.verification.library import (
    complaint,
    errors,
    facts,
    library,
    load_model,
    projector_library,
)


def check_projector(
    file: Path,
    model: Path | None,
    *,
    takes: Sequence[str],
    threads: int,
    report: dict[str, Any],
    begin: Callable[[str], None],
) -> None:
    """Load a projector and compare what it takes with what it should, noting it in ``report``.

    Args:
        file: its GGUF.
        model: one that it is for, whose weights may be absent; None for whatever model.
        takes: what it must take, ``vision`` or ``audio``; nothing for any of them.
        threads: how many threads llama.cpp computes with.
        report: gains ``load_seconds`` and ``details``.
        begin: told what comes next, as words that fit after "while".

    Raises:
        SmokeError: the first check that failed.

    """
    details = report["details"]
    begin("starting")
    details["llama.cpp"] = facts()
    begin("reading the header")
    check_size(file)
    begin("loading the projector")
    start = time.perf_counter()
    found = load_projector(file, model, threads)
    report["load_seconds"] = time.perf_counter() - start
    details["takes"] = list(found)
    missing = [part for part in takes if part not in found]
    if missing:
        raise SmokeError(f"llama.cpp finds no {' and no '.join(missing)} in it.")


def load_projector(file: Path, model: Path | None, threads: int) -> tuple[str, ...]:
    """Load a projector on the CPU, and let go of it again.

    Args:
        file: its GGUF.
        model: one that it is for, whose weights may be absent; None for whatever model.
        threads: how many compute.

    Returns:
        what it takes: ``vision``, ``audio`` or both.

    Raises:
        SmokeError: llama.cpp does not load it, or the model.

    """
    llama, mtmd = library(), projector_library()
    text = load_model(model, dry=True, gpu=False) if model is not None else None
    params = mtmd.mtmd_context_params_default()
    params.use_gpu = False
    params.print_timings = False
    params.n_threads = threads
    errors.clear()
    context = mtmd.mtmd_init_from_file(os.fsencode(file), text, params)
    if not context:
        raise SmokeError(f"llama.cpp does not load it: {complaint()}.")
    sees, hears = mtmd.mtmd_support_vision(context), mtmd.mtmd_support_audio(context)
    mtmd.mtmd_free(context)
    if text:
        llama.llama_model_free(text)
    return tuple(part for part, has in (("vision", sees), ("audio", hears)) if has)
