"""The program that renders chat templates: in jinja2's sandbox, in a process of its own.

It knows two ways: `original` is transformers', `llama` what the engine of llama.cpp makes of a
template (``common/jinja/`` at the version in vendor/manifest.toml). The engine is not part of
llama-cpp-python, so its ways are written down in this folder, as jinja2 with other filters, tests,
methods and operators; tests/parity/test_chat_templates.py holds them to the engine itself.
Not written down: the engine's macros see the variables of their caller, and it has no ``self``.

The sandbox keeps a template from Python's objects, not from counting for hours or filling the
memory; therefore the process, whose time `rendering` limits. It imports little, to start quickly.
"""

import json
import resource
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quantkit.checkpoint.chat.jinja import make_environment
from quantkit.checkpoint.chat.llama import llama
from quantkit.checkpoint.chat.original import original
from quantkit.checkpoint.chat.syntax import UnreadableError

MEMORY = 2**30


_WAYS: dict[str, Callable[..., str]] = {"original": original, "llama": llama}


def answer(jobs: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The ``text`` of each job, or why there is none.

    A job has a ``way``, a ``template``, ``tokens`` and a ``chat``. A ``refusal`` is the template's
    own word (``raise_exception``) or a fault that shows when it runs; a template is ``unreadable``
    where it means nothing, to jinja2 or to the engine.
    """
    answers = []
    for job in jobs:
        try:
            text = _WAYS[job["way"]](job["template"], job["tokens"], job["chat"])
            answers.append({"text": text})
        except UnreadableError as error:
            answers.append({"unreadable": str(error)})
        except Exception as error:  # noqa: BLE001 - a template may fail in any way
            kind = "unreadable" if _has_no_meaning(job["template"]) else "refusal"
            answers.append({kind: str(error)})
    return answers


def _has_no_meaning(template: str) -> bool:
    try:
        make_environment(ImmutableSandboxedEnvironment).parse(template)
    except TemplateError:
        return True
    return False


def main() -> None:
    """Answer the jobs on stdin, within `MEMORY`."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    json.dump(answer(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
