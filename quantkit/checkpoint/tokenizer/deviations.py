"""The closed table of what a tokenizer can do and no GGUF key can say.

A text is excused where an entry `affects` it, by the tokenizer's own files and the text alone, and
then llama.cpp must give exactly the ids of the tokenizer without the traits that are listed here.
Everything else that differs is a fault of the file.
"""

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from quantkit.checkpoint.tokenizer.reference import (
    AddedToken,
    Traits,
    splitter,
)
from quantkit.checkpoint.tokenizer.simplified import CONTROL_SPACES
from quantkit.checkpoint.tokenizer.vocabulary import WORD_BOUNDARY

Parts = Sequence[tuple[str, bool]]
"""A text cut into added tokens and what is between them, each with whether it is a token."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """One trait that llama.cpp's tokenizer lacks.

    ``tokenizer`` is the kind that has it, ``lacks`` what llama.cpp does not do, as a clause after
    "llama.cpp"; ``source`` where both can be read; ``affects`` whether a text, whole and in parts,
    shows it.
    """

    name: str
    tokenizer: str
    lacks: str
    source: str
    affects: Callable[[Traits, str, Parts], bool]


def _is_composed_by(traits: Traits, text: str, _parts: Parts) -> bool:
    return traits.composes and not unicodedata.is_normalized("NFC", text)


def _has_case_outside_ascii(traits: Traits, text: str, _parts: Parts) -> bool:
    return traits.splits_by_case and any(
        not c.isascii() and unicodedata.category(c) in _CASES_AND_MARKS for c in text
    )


_CASES_AND_MARKS = ("Lu", "Lt", "Ll", "Mn", "Mc", "Me")


def _goes_on_after_a_token(traits: Traits, _text: str, parts: Parts) -> bool:
    return traits.prefixes_first and any(
        before and not after for (_, before), (_, after) in pairwise(parts)
    )


def _begins_with_a_space(traits: Traits, _text: str, parts: Parts) -> bool:
    """Whether the text, or what follows an added token, begins with a space (or its sign)."""
    return traits.keeps_space and any(
        not is_token and part.startswith((" ", WORD_BOUNDARY)) for part, is_token in parts
    )


def _has_white_space_taken(traits: Traits, _text: str, parts: Parts) -> bool:
    return any(
        (token.lstrip and before[-1:].isspace()) or (token.rstrip and after[:1].isspace())
        for token, before, after in _places(traits, parts)
    )


def _has_no_whole_word(traits: Traits, _text: str, parts: Parts) -> bool:
    return any(
        token.single_word and (_is_word(before[-1:]) or _is_word(after[:1]))
        for token, before, after in _places(traits, parts)
    )


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _normalizes_a_token(traits: Traits, _text: str, parts: Parts) -> bool:
    return traits.normalizes and any(token.normalized for token, _, _ in _places(traits, parts))


def _has_a_control_space(traits: Traits, text: str, _parts: Parts) -> bool:
    return traits.cleans and any(c in CONTROL_SPACES for c in text)


def _has_a_kept_mark(traits: Traits, text: str, _parts: Parts) -> bool:
    return traits.keeps_marks and any(
        unicodedata.category(c) in ("Mc", "Me") for c in unicodedata.normalize("NFD", text)
    )


def _has_an_inner_token(traits: Traits, _text: str, parts: Parts) -> bool:
    return any(token.inner for token, _, _ in _places(traits, parts))


def _places(traits: Traits, parts: Parts) -> Iterator[tuple[AddedToken, str, str]]:
    """Every added token in a text, with what is before and after it."""
    known = {token.text: token for token in traits.added}
    for number, (part, is_token) in enumerate(parts):
        if is_token:
            before = parts[number - 1][0] if number else ""
            after = parts[number + 1][0] if number + 1 < len(parts) else ""
            yield known[part], before, after


_PARTITION = "tokenizer_st_partition in llama.cpp's src/llama-vocab.cpp"
_SPM = "llama_vocab::impl::tokenize in llama.cpp's src/llama-vocab.cpp (LLAMA_VOCAB_TYPE_SPM)"

DEVIATIONS = (
    Deviation(
        name="NFC",
        tokenizer="tokenizer.json with the normalizer NFC, as Qwen's",
        lacks="does not compose decomposed characters",
        source="llm_tokenizer_bpe_session::tokenize in llama.cpp's src/llama-vocab.cpp normalizes "
        "nothing; tokenizers' NFC",
        affects=_is_composed_by,
    ),
    Deviation(
        name="case outside ASCII",
        tokenizer="Mistral's tekken.json and its like, whose expression names upper and lower case",
        lacks="knows upper and lower case in ASCII only, and no combining marks, where words split",
        source="LLAMA_VOCAB_PRE_TYPE_TEKKEN in llama.cpp's src/llama-vocab.cpp, with the original "
        "expression beside it",
        affects=_has_case_outside_ascii,
    ),
    Deviation(
        name="space only at the begin",
        tokenizer='tokenizer.json with Metaspace and prepend_scheme "first"; tokenizer.model with '
        '"legacy": false',
        lacks="puts a space after every special token, not only before a text",
        source=f"is_prev_special in {_SPM}; tokenizers' Metaspace",
        affects=_goes_on_after_a_token,
    ),
    Deviation(
        name="space kept single",
        tokenizer="tokenizer.json with Metaspace that prepends, as transformers 5 saves",
        lacks="puts a space before a text that begins with one, too",
        source=f"add_space_prefix in {_SPM}; tokenizers' Metaspace::pre_tokenize",
        affects=_begins_with_a_space,
    ),
    Deviation(
        name="white space taken by a token",
        tokenizer="added tokens with lstrip or rstrip",
        lacks="leaves the white space beside a token where the model's own tokenizer drops it",
        source=f"{_PARTITION}: its attributes come from the names of models, no key sets them; "
        "tokenizers' AddedToken",
        affects=_has_white_space_taken,
    ),
    Deviation(
        name="whole words only",
        tokenizer="added tokens with single_word",
        lacks="finds a token inside words",
        source=f"{_PARTITION} looks at no neighbour; tokenizers' AddedToken",
        affects=_has_no_whole_word,
    ),
    Deviation(
        name="token in normalized text",
        tokenizer="added tokens with normalized, beside a normalizer that puts a space in front",
        lacks="finds a token inside a line where the model's own tokenizer wants a space before it",
        source=f"{_PARTITION} looks at the raw text; tokenizers' AddedVocabulary",
        affects=_normalizes_a_token,
    ),
    Deviation(
        name="control characters as spaces",
        tokenizer="WordPiece with BERT's normalizer",
        lacks="parts words at a vertical tab, a form feed or a next line, which the model's own "
        "tokenizer leaves out",
        source="llm_tokenizer_wpm_session::preprocess in llama.cpp's src/llama-vocab.cpp; "
        "tokenizers' BertNormalizer (clean_text)",
        affects=_has_a_control_space,
    ),
    Deviation(
        name="marks that are no accents",
        tokenizer="WordPiece with BERT's normalizer that strips accents",
        lacks="leaves out every combining mark, where the model's own tokenizer keeps those that "
        "take room or enclose",
        source="is_accent_mark in llama.cpp's src/llama-vocab.cpp; tokenizers' BertNormalizer "
        "(strip_accents)",
        affects=_has_a_kept_mark,
    ),
    Deviation(
        name="symbol inside a text",
        tokenizer="tokenizer.model with user-defined symbols, as Mistral's of versions 3 and 7",
        lacks="puts a space after a user-defined symbol, and none before one that a text begins "
        "with",
        source=f"is_prev_special in {_SPM}; PrefixMatcher in SentencePiece's src/normalizer.cc",
        affects=_has_an_inner_token,
    ),
)


def finder(traits: Traits) -> Callable[[str], list[str]] | None:
    """What tells the names of the entries that affect a text; None for a tokenizer without any."""
    flags = ("lstrip", "rstrip", "single_word", "normalized", "inner")
    own = (
        *(traits.composes, traits.prefixes_first, traits.keeps_space, traits.splits_by_case),
        *(traits.cleans, traits.keeps_marks),
    )
    if not any(own) and not any(getattr(t, flag) for t in traits.added for flag in flags):
        return None
    split = splitter(AddedToken(token.text) for token in traits.added)

    def find(text: str) -> list[str]:
        parts = list(split(text))
        return [entry.name for entry in DEVIATIONS if entry.affects(traits, text, parts)]

    return find


def describe_tokens(record: Mapping[str, Any]) -> str:
    """One sentence on a comparison of tokens, as a smoke test records it.

    Args:
        record: ``tokenizer``, ``texts`` and ``deviations``, by name the texts affected; or
            ``lacking``, why there was nothing to compare with.

    """
    if "lacking" in record:
        return f"llama.cpp's tokens were not compared with the model's own: {record['lacking']}"
    texts, file = f"{record['texts']:,}", record["tokenizer"]
    found = record["deviations"]
    if not found:
        return f"llama.cpp gives the tokens of the checkpoint's {file} in all of {texts} texts."
    lacks = {entry.name: entry.lacks for entry in DEVIATIONS}
    parts = [f"it {lacks.get(name, name)} ({count:,})" for name, count in found.items()]
    return (
        f"llama.cpp gives the tokens of the checkpoint's {file} in {texts} texts but for what no "
        f"GGUF can say: {'; '.join(parts)}."
    )
