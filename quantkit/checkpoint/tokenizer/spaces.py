"""What a SentencePiece-style ``tokenizer.json`` does to spaces before it merges.

llama.cpp's SentencePiece tokenizer turns spaces into word boundaries and, unless
``tokenizer.ggml.add_space_prefix`` is false, puts one in front of a text and of what follows a
special token. It knows nothing else, so nothing else can be converted.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from quantkit.checkpoint.tokenizer.source import TokenizerSource, steps
from quantkit.checkpoint.tokenizer.vocabulary import WORD_BOUNDARY
from quantkit.core.errors import TokenizerError


class Prefix(Enum):
    """Where a word boundary is put in front of a text."""

    NEVER = "never"
    LEGACY = "legacy"
    """In front of every stretch between special tokens: what llama.cpp does."""
    ALWAYS = "always"
    """The same, but not in front of a space."""
    FIRST = "first"
    """Only at the very start, and not in front of a space."""

    @property
    def adds(self) -> bool:
        """Whether a text that starts with a letter gets a word boundary."""
        return self is not Prefix.NEVER


def read_prefix(source: TokenizerSource) -> Prefix:
    """How the tokenizer.json of a checkpoint begins a text, as transformers 5 opens it.

    Raises:
        TokenizerError: it does to a text what llama.cpp cannot do.

    """
    prefix, bounds = Prefix.NEVER, False
    for step in steps(source.opened.get("normalizer"), "normalizers"):
        match step:
            case {"type": "Prepend", "prepend": text} if text == WORD_BOUNDARY:
                prefix = Prefix.LEGACY
            case {"type": "Prepend", "prepend": " "} if not bounds:
                prefix = Prefix.LEGACY
            case {
                "type": "Replace",
                "pattern": {"String": " "} | {"Regex": " "},
                "content": text,
            } if text == WORD_BOUNDARY:
                bounds = True
            case {"type": "NFC"}:
                pass
            case _:
                raise _refused(source, f"normalizes text ({step.get('type')})")
    for step in steps(source.opened.get("pre_tokenizer"), "pretokenizers"):
        match step:
            case {"type": "Metaspace"}:
                found = _metaspace(source, step)
                prefix = found if prefix is Prefix.NEVER else prefix
                bounds = True
            case {"type": "Split", "pattern": {"String": " "}} if bounds:
                pass  # no space is left to split at
            case _:
                raise _refused(source, f"splits text before it merges ({step.get('type')})")
    if not bounds:
        raise _refused(source, "leaves spaces as they are")
    return prefix


def _metaspace(source: TokenizerSource, step: Mapping[str, Any]) -> Prefix:
    if step.get("replacement", WORD_BOUNDARY) != WORD_BOUNDARY:
        raise _refused(source, f"writes spaces as {step['replacement']!r}")
    inner = [text for text in source.opened["model"].get("vocab", {}) if WORD_BOUNDARY in text[1:]]
    if step.get("split", True) and inner:
        raise _refused(source, f"merges no further than a space, but has the token {inner[0]!r}")
    return Prefix(prepend_scheme(step))


def prepend_scheme(step: Mapping[str, Any]) -> str:
    """Where a Metaspace puts a space: ``always``, ``first`` or ``never``."""
    legacy = "always" if step.get("add_prefix_space", True) else "never"  # before tokenizers 0.14
    return str(step.get("prepend_scheme") or legacy)


def _refused(source: TokenizerSource, what: str) -> TokenizerError:
    return TokenizerError(
        f"{source.fast_file} {what}, which llama.cpp does not do for a SentencePiece vocabulary; "
        "quantkit cannot convert this tokenizer."
    )
