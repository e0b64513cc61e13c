"""Chat templates rendered, and what llama.cpp makes of them beside what transformers does."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from quantkit.checkpoint.chat.chats import CHATS
from quantkit.core.child import child_environment

_COMMAND = (sys.executable, "-P", "-m", "quantkit.checkpoint.chat.process")
SECONDS = 10
_NAMED = 4  # kinds of conversations that a remark lists
_BEFORE, _SHOWN = 12, 40  # characters of a text around a difference


def render(jobs: Sequence[Mapping[str, Any]], seconds: float | None = None) -> list[dict[str, str]]:
    """What `process.answer` gives for each job, empty where time or memory ran out."""
    try:
        done = subprocess.run(
            _COMMAND,
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            timeout=SECONDS if seconds is None else seconds,
            check=True,
            env=child_environment(),
            cwd=Path(sys.executable).anchor,
        )
        answers: list[dict[str, str]] = json.loads(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError):
        return []
    return answers


def template_remarks(
    templates: Mapping[str, str],
    tokens: Mapping[str, str],
    llama_tokens: Mapping[str, str],
    *,
    adds_bos: bool,
) -> tuple[str, ...]:
    """Sentences about what llama.cpp renders otherwise than transformers; none where all is equal.

    Conversations of all kinds are rendered both ways (`chats`, `process`).

    Args:
        templates: by name; ``default``, and perhaps ``tool_use`` for conversations with tools.
        tokens: the special tokens that transformers hands to a template.
        llama_tokens: ``bos_token`` and ``eos_token`` as the GGUF has them.
        adds_bos: whether llama.cpp puts the first of these in front of every text.

    """
    if "default" not in templates:
        return ()
    parts = (templates, tokens, llama_tokens)
    return _remarks(*(tuple(sorted(part.items())) for part in parts), adds_bos)


_Items = tuple[tuple[str, str], ...]


@cache
def _remarks(
    templates: _Items, tokens: _Items, llama_tokens: _Items, adds_bos: bool
) -> tuple[str, ...]:
    named = dict(templates)
    jobs = []
    for chat in CHATS.values():
        name = "tool_use" if chat["tools"] and "tool_use" in named else "default"
        for way, special in (("original", tokens), ("llama", llama_tokens)):
            job = {"way": way, "template": named[name], "tokens": dict(special), "chat": chat}
            jobs.append(job)
    answers = render(jobs)
    if not answers:
        return (f"The chat template does not render within {SECONDS} s and 1 GiB.",)
    bos = dict(llama_tokens).get("bos_token", "") if adds_bos else ""
    for answer in answers[1::2]:
        if bos and "text" in answer:
            answer["text"] = bos + answer["text"].removeprefix(bos)
    pairs = zip(answers[::2], answers[1::2], strict=True)
    return tuple(_compare(dict(zip(CHATS, pairs, strict=True)), bos))


def _compare(
    answers: Mapping[str, tuple[dict[str, str], dict[str, str]]], bos: str
) -> Iterator[str]:
    """One sentence for each way in which two answers can differ.

    Args:
        answers: by the name of the conversation, the original's and llama.cpp's.
        bos: what llama.cpp puts in front of every text; empty for nothing.

    """
    unreadable = [o["unreadable"] for o, _ in answers.values() if "unreadable" in o]
    if unreadable:
        yield f"The chat template is not jinja2, so nothing can use it: {_line(unreadable[0])}."
        return
    unknown = {m["unreadable"]: None for _, m in answers.values() if "unreadable" in m}
    if unknown:
        what = _line(next(iter(unknown)))
        yield (
            f"llama.cpp cannot read the chat template: it does not know {what}. Give it another "
            "with --chat-template-file."
        )
    other = {
        name: (original["text"], llama["text"])
        for name, (original, llama) in answers.items()
        if "text" in original and "text" in llama and original["text"] != llama["text"]
    }
    only_bos = {name: None for name, (original, llama) in other.items() if llama == bos + original}
    if only_bos:
        yield (
            f"The chat template writes no {bos} and the tokenizer adds one: llama.cpp puts it in "
            f"front ({_names(only_bos, len(answers))}), transformers' apply_chat_template leaves "
            "it out. Nothing else differs there, and you need not change anything."
        )
    other = {name: texts for name, texts in other.items() if name not in only_bos}
    if other:
        wanted, found = _difference(*next(iter(other.values())))
        yield (
            f"llama.cpp renders the chat template otherwise than transformers "
            f"({_names(other, len(answers))}): {found} instead of {wanted}."
        )
    failing = {
        name: llama["refusal"]
        for name, (original, llama) in answers.items()
        if "text" in original and "refusal" in llama
    }
    if failing:
        yield (
            f"llama.cpp cannot render the chat template ({_names(failing, len(answers))}): "
            f"{_line(next(iter(failing.values())))}."
        )
    refused = {
        name: original["refusal"]
        for name, (original, llama) in answers.items()
        if "refusal" in original and "text" in llama
    }
    if refused:
        yield (
            f"The chat template refuses what llama.cpp renders all the same "
            f"({_names(refused, len(answers))}): {_line(next(iter(refused.values())))}."
        )


def _names(found: Mapping[str, Any], of: int) -> str:
    if len(found) == of:
        return "every conversation"
    names = list(found)
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _difference(wanted: str, found: str) -> tuple[str, str]:
    """Both texts where they first differ."""
    pairs = enumerate(zip(wanted, found, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(wanted), len(found)))
    start = max(at - _BEFORE, 0)
    return repr(wanted[start : start + _SHOWN]), repr(found[start : start + _SHOWN])


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
