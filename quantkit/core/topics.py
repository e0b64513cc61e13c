"""Python's help topics, which every CPython carries: one text to calibrate on, two to measure on.

What a model is judged by must not be what it was fitted to, nor what was chosen by. So two runs of
the alphabet are held out, and no paragraph of theirs is in anything else here.
"""

from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import TypeAlias

# Bounds instead of lists, so that the same topics are meant when a Python version adds some.
_Run: TypeAlias = tuple[str, str]
TO_JUDGE: _Run = ("if", "operator-summary")
"""What `quantkit compare` measures on, some 39 kB."""
TO_CHOOSE: _Run = ("string-methods", "subscriptions")
"""What the candidates of a search are measured on, some 36 kB."""


def whole_topics(run: _Run) -> str:
    """The topics from one to another, as they are; Python versions word them a bit differently."""
    return "\n\n".join(topics[name].strip("\n") for name in _names(run))


def topics_to_choose_by() -> str:
    """The paragraphs of the topics to choose by that are not also among those to judge by."""
    judging = _keys(TO_JUDGE)
    kept = [p for name in _names(TO_CHOOSE) for p in _paragraphs(name) if _key(p) not in judging]
    return "\n\n".join(kept)


def other_paragraphs() -> Iterator[str]:
    """Every paragraph that is in neither, once: topics repeat each other's."""
    seen = _keys(TO_JUDGE) | _keys(TO_CHOOSE)
    for name in sorted(topics):
        for paragraph in _paragraphs(name):
            if _key(paragraph) not in seen:
                seen.add(_key(paragraph))
                yield paragraph


def _names(run: _Run) -> list[str]:
    first, last = run
    return [name for name in sorted(topics) if first <= name <= last]


def _paragraphs(name: str) -> Iterator[str]:
    for paragraph in topics[name].split("\n\n"):
        if paragraph.strip():
            yield paragraph.strip("\n")


def _keys(run: _Run) -> set[str]:
    return {_key(paragraph) for name in _names(run) for paragraph in _paragraphs(name)}


def _key(paragraph: str) -> str:
    """A paragraph as it is the same where it is indented or wrapped otherwise."""
    return " ".join(paragraph.split())
