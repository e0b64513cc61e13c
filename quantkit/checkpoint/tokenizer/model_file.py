"""What a SentencePiece ``tokenizer.model`` says about how it works, beside its pieces.

The file is a protocol buffer (``sentencepiece_model.proto``), but the sentencepiece package gives
out no settings and has its protobuf classes made for other versions than are installed. Few fields
matter here, and the wire format is simple: https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.core.errors import TokenizerError
from quantkit.core.files import read_file

# Field numbers of sentencepiece_model.proto.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_USER_DEFINED = b"\x18\x04"  # type = USER_DEFINED, a piece's last field
_MODEL_TYPE, _WHITESPACE_AS_SUFFIX, _BYTE_FALLBACK = 3, 24, 35
_NAME, _CHARSMAP, _DUMMY_PREFIX, _STRIPS_SPACES, _ESCAPES_SPACES = 1, 2, 3, 4, 5

_KINDS = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The settings of a SentencePiece model that change which tokens a text gets."""

    kind: str
    """``unigram``, ``BPE``, ``word`` or ``character``."""
    normalization: str
    """The name of the rules by which characters are replaced; empty where none are."""
    dummy_prefix: bool
    """Whether a text begins with a space."""
    strips_spaces: bool
    """Whether spaces at the ends go, and one is left of several."""
    escapes_spaces: bool
    """Whether spaces become word boundaries."""
    spaces_end_words: bool
    """Whether the space belongs to the word before it."""
    byte_fallback: bool
    """Whether characters without a piece become bytes."""
    n_pieces: int
    """How many pieces it has."""
    user_defined: frozenset[int]
    """Ids of the pieces that are cut out of a text before it is merged."""


def read_settings(model_file: Path) -> ModelSettings:
    """The settings of a tokenizer.model; what it does not say has the format's default.

    Raises:
        TokenizerError: the file cannot be read, or is no protocol buffer.

    """
    proto = read_file(model_file, error=TokenizerError)
    try:
        fields = list(_fields(proto))
        model = dict(fields)
        trainer, normalizer = (dict(_fields(model.get(n, b""))) for n in (_TRAINER, _NORMALIZER))
    except (IndexError, TypeError, ValueError) as error:
        raise TokenizerError(f"{model_file} is damaged; download it again.") from error
    pieces = [value for number, value in fields if number == _PIECE]
    kind = trainer.get(_MODEL_TYPE, 1)
    return ModelSettings(
        kind=_KINDS.get(kind, f"number {kind}"),
        normalization=_rules(normalizer),
        dummy_prefix=bool(normalizer.get(_DUMMY_PREFIX, True)),
        strips_spaces=bool(normalizer.get(_STRIPS_SPACES, True)),
        escapes_spaces=bool(normalizer.get(_ESCAPES_SPACES, True)),
        spaces_end_words=bool(trainer.get(_WHITESPACE_AS_SUFFIX, False)),
        byte_fallback=bool(trainer.get(_BYTE_FALLBACK, False)),
        n_pieces=len(pieces),
        user_defined=frozenset(i for i, p in enumerate(pieces) if p.endswith(_USER_DEFINED)),
    )


def _rules(normalizer: dict[int, Any]) -> str:
    if not normalizer.get(_CHARSMAP):
        return ""
    return bytes(normalizer.get(_NAME, b"")).decode(errors="replace") or "unnamed rules"


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a message's fields; of those that repeat, the last one counts."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        value: Any
        if wire_type == _VARINT:
            value, at = _varint(message, at)
        elif wire_type == _BYTES:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
            value, at = message[at : at + length], at + length
        else:
            raise ValueError(wire_type)
        if at > len(message):
            raise ValueError(at)
        yield number, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
