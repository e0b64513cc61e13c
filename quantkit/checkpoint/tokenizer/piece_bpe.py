"""``tokenizer.json`` of SentencePiece-style BPE with byte fallback.

llama.cpp gets scores instead of merges (see ``merge_order``). The converter of llama.cpp writes the
same score for every token, with which texts are merged from left to right instead.
"""

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from quantkit.checkpoint.tokenizer.fast import FastTokenizer, require_room
from quantkit.checkpoint.tokenizer.merge_order import merge_scores
from quantkit.checkpoint.tokenizer.source import TokenizerSource, steps
from quantkit.checkpoint.tokenizer.vocabulary import (
    ADDED_SCORE,
    UNUSED_SCORE,
    TokenType,
    Vocabulary,
    unused_token,
)
from quantkit.core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import AddedToken

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


def is_piece_bpe(source: TokenizerSource) -> bool:
    """Whether a BPE is of SentencePiece's style: it merges characters, not bytes."""
    fast = source.fast
    if fast["model"].get("byte_fallback") and (fast.get("decoder") or {}).get("type") == "Sequence":
        return True
    parts = (("pre_tokenizer", "pretokenizers"), ("decoder", "decoders"))
    kinds = {step.get("type") for part, key in parts for step in steps(fast.get(part), key)}
    return "ByteLevel" not in kinds


def read_vocabulary(source: TokenizerSource, tokenizer: FastTokenizer) -> Vocabulary:
    """The vocabulary, filled up with unused tokens to ``vocab_size``.

    The converter does not fill up here, and llama.cpp then refuses its file: the embeddings have
    more rows than there are tokens.

    Raises:
        TokenizerError: ids are missing or beyond the vocabulary size, or llama.cpp would split
            texts otherwise than this tokenizer.

    """
    by_id = tokenizer.texts_by_id()
    require_room(source, by_id)
    gaps = [i for i in range(len(by_id)) if i not in by_id]
    if gaps:
        raise TokenizerError(
            f"{source.fast_file} has no token with the id {gaps[0]}; copy the file from the "
            "original model."
        )
    return scored_vocabulary(source, tokenizer)


def scored_vocabulary(source: TokenizerSource, tokenizer: FastTokenizer) -> Vocabulary:
    """The first ``vocab_size`` tokens, with unused ones where there are none.

    Raises:
        TokenizerError: llama.cpp would split texts otherwise than this tokenizer.

    """
    where, model = source.fast_file, source.opened["model"]
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise TokenizerError(
                f"{where} merges with {name} = {model[name]!r}, which llama.cpp does not do; "
                "quantkit cannot convert this tokenizer."
            )
    if not model.get("byte_fallback"):
        raise TokenizerError(
            f"{where} has one token for all characters without a piece (byte_fallback is off), "
            "which llama.cpp does not do for a SentencePiece vocabulary; quantkit cannot convert "
            "this tokenizer."
        )
    matched = {token.content for token in tokenizer.added.values()}
    by_text = merge_scores(model, tokenizer.backend.model, matched, str(where))
    # A token that no merge makes must not come before any that is made.
    lowest = min(ADDED_SCORE, min(by_text.values(), default=0.0) - 1)
    size = source.vocab_size
    tokens = [unused_token(i) for i in range(size)]
    types = [TokenType.UNUSED] * size
    scores = [UNUSED_SCORE] * size
    for i, text in tokenizer.texts_by_id().items():
        if i < size:
            tokens[i], scores[i] = text, by_text.get(text, lowest)
            types[i] = _type(text, tokenizer.added.get(i))
    return Vocabulary(tokens, types, scores)


def same_order(scored: Vocabulary, others: Vocabulary) -> bool:
    """Whether llama.cpp splits texts alike with the vocabularies of a tokenizer.json and .model."""
    cut_out = {TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED}
    if scored.tokens != others.tokens:
        return False
    pairs = zip(scored.types, others.types, strict=True)
    if any((ours in cut_out) != (theirs in cut_out) for ours, theirs in pairs):
        return False
    pieces = [
        (score, i)
        for i, (score, kind) in enumerate(zip(scored.scores, scored.types, strict=True))
        if kind is TokenType.NORMAL
    ]
    lowest = min(pieces)[0] if pieces else 0.0  # single characters, which no merge makes
    made = sorted((-score, i) for score, i in pieces if score > lowest)
    ordered = [others.scores[i] for _, i in made]
    return all(first > second for first, second in pairwise(ordered))


def _type(text: str, added: "AddedToken | None") -> TokenType:
    """The type of a token: one that is cut out of a text must be one that llama.cpp cuts out."""
    if added is None:
        return TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL
    return TokenType.CONTROL if added.special else TokenType.USER_DEFINED
