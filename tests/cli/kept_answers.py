"""Answers of quantkit's helper processes that stay the same: each question is asked once.

A build asks a checkpoint's own tokenizer, and its chat template, in processes of their own: four
fifths of what a command takes on a tiny model. Tests build a few tokenizers hundreds of times.
What those processes do is tested beside their own modules.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from quantkit.checkpoint.chat.rendering import render
from quantkit.publishing import prompt
from quantkit.verification import tokens
from quantkit.verification.llama import Run, run_worker

_WEIGHTS = {".safetensors", ".gguf", ".bin", ".pth"}
_runs: dict[str, Run] = {}
_rendered: dict[str, list[dict[str, str]]] = {}


@contextmanager
def each_question_once() -> Iterator[None]:
    """For as long as it lasts, unless a test has put something in their place."""
    if vars(tokens)["run_worker"] is not run_worker or vars(prompt)["render"] is not render:
        yield
        return
    with patch.object(tokens, "run_worker", _run_worker), patch.object(prompt, "render", _render):
        yield


def _run_worker(request: Mapping[str, Any], **options: Any) -> Run:
    folder = Path(request["folder"])
    question = json.dumps([{**request, "folder": _sums(folder)}, repr(options), _environment()])
    if question in _runs:
        return _runs[question]
    run = run_worker(request, **options)
    if run.failure is None and str(folder) not in json.dumps(run.result):
        _runs[question] = run
    return run


def _render(
    jobs: Sequence[Mapping[str, Any]], seconds: float | None = None
) -> list[dict[str, str]]:
    question = json.dumps([jobs, seconds, _environment()])
    answers = _rendered.get(question) or render(jobs, seconds)
    _rendered[question] = answers
    return answers


def _sums(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a checkpoint but its weights."""
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix not in _WEIGHTS]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def _environment() -> list[str]:
    return [os.environ.get(name, "") for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")]
