"""Tokens with their types and scores, as GGUF holds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

# A value's Python type is its GGUF type: str string, bool bool, int uint32, list array.
Metadata = dict[str, str | bool | int | list[str] | list[int] | list[float]]

# The score of a token that SentencePiece did not score, and of an id that no token has.
ADDED_SCORE = -1000.0
UNUSED_SCORE = -10000.0

WORD_BOUNDARY = "\u2581"  # SentencePiece's sign for a space

# The roles that settings name a token for, in transformers' order.
SPECIAL_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# What llama.cpp takes where a vocabulary with scores names none.
SENTENCEPIECE_BOS, SENTENCEPIECE_EOS = 1, 2

# The byte-level pre-tokenizers with which llama.cpp puts BOS in front unless it is told otherwise.
# Source: src/llama-vocab.cpp, load.
_PRE_WITH_BOS = (
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
    "chameleon",
)


def _byte_letters() -> dict[int, int]:
    """The letters that GPT-2's byte-level BPE writes bytes as (``bytes_to_unicode``)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    return {byte: byte for byte in shown} | {b: 0x100 + i for i, b in enumerate(others)}


# The letter that stands for a byte in byte-level vocabularies, by byte.
BYTE_LETTERS = _byte_letters()


class TokenType(IntEnum):
    """``tokenizer.ggml.token_type``, as in SentencePiece's model.proto."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A vocabulary by token id; byte-level BPE has no scores."""

    tokens: Sequence[str]
    types: Sequence[TokenType]
    scores: Sequence[float] = ()

    def metadata(self) -> Metadata:
        """The keys in GGUF order."""
        metadata: Metadata = {"tokenizer.ggml.tokens": list(self.tokens)}
        if self.scores:
            metadata["tokenizer.ggml.scores"] = list(self.scores)
        metadata["tokenizer.ggml.token_type"] = [int(kind) for kind in self.types]
        return metadata


def assumes_bos(keys: Mapping[str, Any]) -> bool:
    """Whether llama.cpp puts BOS in front of a text where ``add_bos_token`` is not set.

    Args:
        keys: ``tokenizer.*`` with their values.

    """
    is_piece = keys.get("tokenizer.ggml.model") == "llama"
    return is_piece or keys.get("tokenizer.ggml.pre") in _PRE_WITH_BOS


def token_text(token: Any) -> Any:
    """What settings name a token by: a text, or an object with flags."""
    return token.get("content") if isinstance(token, dict) else token


def unused_token(token_id: int) -> str:
    """The placeholder for an id below the vocabulary size that no token has."""
    return f"[PAD{token_id}]"


def added_token(text: str, *, special: bool) -> tuple[str, TokenType]:
    """Text and type of a token that was added to a trained vocabulary.

    llama.cpp matches such tokens in raw text, so a word boundary becomes the space it stands for.
    """
    if special or _looks_special(text):
        return text, TokenType.CONTROL
    return text.replace(WORD_BOUNDARY, " "), TokenType.USER_DEFINED


def _looks_special(text: str) -> bool:
    """Whether a token is a control token by its looks: several models forget to mark theirs."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))  # DeepSeek's full-width bars
        or (text.startswith("<unused") and text.endswith(">"))
    )
