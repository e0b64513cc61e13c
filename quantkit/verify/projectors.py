"""What a projector must do to pass the smoke test. Runs in the worker: llama.cpp may crash."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quantkit.core.errors import SmokeError
from quantkit.verify.bindings import check_size, facts, load_projector


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
