"""A tokenizer.json changed to give what llama.cpp can give at best, whatever its GGUF says."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint.tokenizer.fast import FastTokenizer
from quantkit.checkpoint.tokenizer.source import steps
from quantkit.checkpoint.tokenizer.vocabulary import WORD_BOUNDARY

if TYPE_CHECKING:
    from tokenizers import Tokenizer


# Control characters that are white space to llama.cpp (unicode_set_whitespace in its
# src/unicode-data.cpp), and nothing to BERT's normalizer, which knows tab and ends of lines only.
CONTROL_SPACES = "\x0b\x0c\x85"


# Expressions by which text is split, and what llama.cpp has in their place: it knows upper and
# lower case in ASCII only, and combining marks are no letters. Source: llm_tokenizer_bpe in
# llama.cpp's src/llama-vocab.cpp (LLAMA_VOCAB_PRE_TYPE_TEKKEN and _GPT4O).
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_NOT_LOWER, _NOT_UPPER = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(upper: str, lower: str, ending: str, digits: str) -> str:
    before = r"[^\r\n\p{L}\p{N}]?"
    return f"{before}{upper}*{lower}+{ending}|{before}{upper}+{lower}*{ending}|{digits}|{_REST}"


ASCII_CASE = {
    _cased(_UPPER, _LOWER, *kind): _cased(_NOT_LOWER, _NOT_UPPER, *kind)
    for kind in (("", r"\p{N}"), ("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}"))
}


def simplify_fast(
    tokenizer: FastTokenizer, normalizer: Sequence[Mapping[str, Any]], metaspace: Mapping[str, Any]
) -> None:
    """Change a tokenizer in place to give what llama.cpp can at best."""
    from tokenizers import AddedToken as Added

    kept = [step for step in normalizer if step.get("type") != "NFC"]
    if any(step.get("clean_text") for step in berts(kept)):
        kept.insert(0, _replacing(f"[{CONTROL_SPACES}]", " "))
    if any(map(strips_accents, berts(kept))):
        kept[:0] = [{"type": "NFD"}, _replacing(r"[\p{Mc}\p{Me}]", "")]
    splits = [_in_ascii(step) for step in steps(tokenizer.pre_tokenizer, "pretokenizers")]
    pre_tokenizer = {"type": "Sequence", "pretokenizers": splits} if splits else {}
    if metaspace.get("prepend_scheme", "never") != "never":
        # What a SentencePiece vocabulary of llama.cpp does: a space before each stretch of text.
        kept.append({"type": "Prepend", "prepend": WORD_BOUNDARY})
        pre_tokenizer = {**metaspace, "prepend_scheme": "never"}
    parts = _parts(kept, pre_tokenizer)
    tokenizer.backend.normalizer = parts.normalizer
    tokenizer.backend.pre_tokenizer = parts.pre_tokenizer
    tokenizer.backend.add_tokens(
        [
            Added(token.content, normalized=False, special=token.special)
            for token in tokenizer.added.values()
        ]
    )


def berts(normalizer: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The steps of a normalizer that are BERT's."""
    return [step for step in normalizer if step.get("type") == "BertNormalizer"]


def strips_accents(step: Mapping[str, Any]) -> bool:
    """Whether a normalizer of BERT's takes accents away: by default with lower case."""
    wanted = step.get("strip_accents")
    return bool(step.get("lowercase") if wanted is None else wanted)


def splits_by_case(step: Mapping[str, Any]) -> bool:
    """Whether a step splits text at upper and lower case beyond ASCII."""
    return (step.get("pattern") or {}).get("Regex") in ASCII_CASE


def _in_ascii(step: Mapping[str, Any]) -> dict[str, Any]:
    if not splits_by_case(step):
        return dict(step)
    return {**step, "pattern": {"Regex": ASCII_CASE[step["pattern"]["Regex"]]}}


def _replacing(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _parts(
    normalizer: Sequence[Mapping[str, Any]], pre_tokenizer: Mapping[str, Any]
) -> "Tokenizer":
    """A tokenizer without a vocabulary that has these parts."""
    from tokenizers import Tokenizer

    document: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": list(normalizer)} if normalizer else None,
        "pre_tokenizer": dict(pre_tokenizer) or None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    return Tokenizer.from_str(json.dumps(document))
