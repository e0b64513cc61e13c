"""The child process that runs llama.cpp: ``python -m quantkit.verification.worker``.

It reads one JSON object from stdin and writes JSON lines to stdout: ``{"stage": TEXT}`` whenever
it begins something, with ``done`` and ``of`` where that is long, then ``{"result": {...}}``, or
``{"native_error": TEXT}`` when llama.cpp itself cannot be used. Whatever else writes to stdout or
stderr ends up on stderr.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from quantkit.core.errors import ImatrixError, NativeError, SmokeError


def main() -> None:
    """Answer the request on stdin."""
    request = json.load(sys.stdin)
    _limit(request["timeout"])
    with _reserve_stdout() as channel:

        def send(**message: Any) -> None:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

        try:
            send(result=_answer(request, send))
        except NativeError as error:
            send(native_error=str(error))


def _answer(request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    # What asks for no logits does without numpy, which takes as long to import as a dry run.
    if request["task"] == "facts":
        from quantkit.verification.library import facts

        return facts()
    if request["task"] == "buffers":
        from quantkit.verification.buffers import buffers

        file, settings = Path(request["file"]), request["settings"]
        _limit_memory(request["most_bytes"])
        try:
            return buffers(file, settings, dry=request["dry"], gpu=request["gpu"])
        except SmokeError as error:
            return {"refused": str(error)}
    if request["task"] == "projector":
        return _answer_projector(request, send)
    if request["task"] == "importance":
        from quantkit.verification import importance

        try:
            return importance.answer(request, send)
        except (SmokeError, ImatrixError) as error:
            return {"refused": str(error)}
    try:
        from quantkit.verification import checks, evaluation
    except ImportError as error:
        raise NativeError(f"{error.name} is not installed; pip install {error.name}.") from None
    if request["task"] in ("record", "measure", "logits", "perplexity"):
        try:
            return evaluation.answer(request, begin=lambda stage: send(stage=stage))
        except SmokeError as error:
            return {"refused": str(error)}
    report: dict[str, Any] = {"details": {}}
    try:
        checks.check_model(
            [Path(file) for file in request["files"]],
            extra_buffers=request["extra_buffers"],
            threads=request["threads"],
            gpu_layers=request["gpu_layers"],
            n_tokens=request["n_tokens"],
            tokens=request["tokens"],
            report=report,
            begin=lambda stage: send(stage=stage),
        )
    except SmokeError as error:
        return {**report, "verdict": str(error)}
    return {**report, "verdict": "passed"}


def _answer_projector(request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    from quantkit.verification import projectors

    report: dict[str, Any] = {"details": {}}
    try:
        projectors.check_projector(
            Path(request["file"]),
            request["model"] and Path(request["model"]),
            takes=request["takes"],
            threads=request["threads"],
            report=report,
            begin=lambda stage: send(stage=stage),
        )
    except SmokeError as error:
        return {**report, "verdict": str(error)}
    return {**report, "verdict": "passed"}


def _reserve_stdout() -> TextIO:
    """The real stdout, for us alone: descriptor 1 becomes stderr for everybody else."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _limit(timeout: float) -> None:
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash here is an answer, not a dump
    signal.alarm(int(timeout) + 30)  # should the parent be killed, this process ends all the same


def _limit_memory(n_bytes: int | None) -> None:
    """Have the process refused more data than so much, before the machine's memory is full."""
    if n_bytes is None or sys.platform == "win32":
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or n_bytes < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, hard))


if __name__ == "__main__":
    main()
