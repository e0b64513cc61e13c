"""The English that the tiny checkpoints are trained and measured on: `pydoc_data.topics`.

Every CPython ships it, so neither training nor a test needs a network or a text in the repository.
Its wording changes a little between Python versions; README.md names the one trained with.
"""

from collections.abc import Iterator
from pydoc_data.topics import topics

# A contiguous run of the alphabet, about 8 % of the text. Bounds instead of a draw over the list
# keep the same topics held out when a Python version adds or removes some.
HELD_OUT_FIRST, HELD_OUT_LAST = "if", "operator-summary"


def heldout_text() -> str:
    """Whole topics that no checkpoint here was trained on (Python 3.11: 13 topics, 39 KB)."""
    return "\n\n".join(topics[name].strip("\n") for name in sorted(topics) if _held_out(name))


def training_text() -> str:
    """The other topics, each paragraph once, without any paragraph that the held-out text has.

    Topics contain each other ("specialnames" repeats "customization", and so on), so splitting by
    name alone would train on much of the held-out text.
    """
    seen = {
        _key(paragraph) for name in topics if _held_out(name) for paragraph in _paragraphs(name)
    }
    kept = []
    for name in sorted(topics):
        for paragraph in _paragraphs(name):
            if _key(paragraph) not in seen:
                seen.add(_key(paragraph))
                kept.append(paragraph)
    return "\n\n".join(kept)


def _held_out(name: str) -> bool:
    return HELD_OUT_FIRST <= name <= HELD_OUT_LAST


def _paragraphs(name: str) -> Iterator[str]:
    for paragraph in topics[name].split("\n\n"):
        if paragraph.strip():
            yield paragraph.strip("\n")


def _key(paragraph: str) -> str:
    return " ".join(
        paragraph.split()
    )  # a repeated paragraph may be indented or wrapped differently
