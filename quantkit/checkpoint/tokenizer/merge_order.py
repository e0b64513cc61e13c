"""Scores with which llama.cpp joins pieces as a list of merges does.

The tokenizers library joins the two neighbours whose *pair* comes first in the list of merges.
llama.cpp's SentencePiece tokenizer (``llm_tokenizer_spm``) joins the two neighbours whose *joint
text* is a token with the highest score, whether a merge makes it of these two or not. Both take the
leftmost of equals.

They are the same for the right scores. What happens inside a stretch of text does not depend on
its surroundings as long as nothing is joined across its borders, so whenever a piece is made, in
whatever text, it is made as in a text of its own: by one certain merge, its last. Minus the rank of
that merge is its score. A piece that the merges do not make in a text of its own is never made;
llama.cpp must not make it either, which is tried.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, Any

from quantkit.core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers.models import BPE

Pair = tuple[str, str]


def merge_scores(
    model: Mapping[str, Any], opened: "BPE", matched: Collection[str], where: str
) -> dict[str, float]:
    """The score of every piece that a merge makes.

    Args:
        model: the BPE model of tokenizer.json.
        opened: the same, as the tokenizers library has opened it.
        matched: tokens that are cut out of a text before any merge: no merge need make them.
        where: the file's name, for messages.

    Raises:
        TokenizerError: with no scores would llama.cpp join the same pieces.

    """
    vocab: Mapping[str, int] = model["vocab"]
    ranks = {pair: rank for rank, pair in enumerate(read_merges(model))}
    made: dict[str, list[int]] = {}
    for (left, right), rank in ranks.items():
        made.setdefault(left + right, []).append(rank)
    scores = {text: float(-_last_rank(text, found, ranks)) for text, found in made.items()}
    unmade = [text for text in _unreached(model, opened) if text not in matched and " " not in text]
    whole = model.get("ignore_merges") and [text for text in unmade if not _is_byte(text)]
    if whole:
        raise TokenizerError(
            f"{where} gives a text that is {whole[0]!r} one token although no merges make it "
            "(ignore_merges), which llama.cpp does not do for such a vocabulary; quantkit cannot "
            "convert this tokenizer."
        )
    for text in unmade:
        half = _joins_last(text, vocab, scores)
        if half is not None:
            raise TokenizerError(
                f"{where} has the token {text!r} but no merge that makes it of {half!r} and "
                f"{text[len(half) :]!r}, which llama.cpp would join: it would split texts "
                "otherwise than this tokenizer, so quantkit does not convert it."
            )
    return scores


def read_merges(model: Mapping[str, Any]) -> list[Pair]:
    """The merges of tokenizer.json as pairs: it has them as lists, or as texts with a space."""
    pairs = model.get("merges") or []
    return [
        (pair[0], pair[1]) if isinstance(pair, list) else (pair.split(" ")[0], pair.split(" ")[1])
        for pair in pairs
    ]


def _last_rank(text: str, found: Sequence[int], ranks: Mapping[Pair, int]) -> int:
    """The rank of the merge that makes a piece.

    Where a piece's merges follow each other in the list, no other comes between, so any would do.
    """
    best = min(found)
    if max(found) - best == len(found) - 1:
        return best
    pieces = list(text)
    while len(pieces) > 1:
        rank, at = min(
            (ranks.get((left, right), len(ranks)), at)
            for at, (left, right) in enumerate(pairwise(pieces))
        )
        if rank == len(ranks):
            return best  # never made
        if len(pieces) == 2:
            return rank
        pieces[at : at + 2] = ["".join(pieces[at : at + 2])]
    return best


def _unreached(model: Mapping[str, Any], opened: "BPE") -> list[str]:
    """Tokens that the merges do not make of their own text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer(opened)
    if model.get("ignore_merges"):
        bare = {"version": "1.0", "added_tokens": [], "model": {**model, "ignore_merges": False}}
        tokenizer = Tokenizer.from_str(json.dumps(bare))
    vocab: Mapping[str, int] = model["vocab"]
    texts = [text for text in vocab if len(text) > 1]
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [text for text, e in zip(texts, encodings, strict=True) if e.ids != [vocab[text]]]


def _joins_last(text: str, tokens: Collection[str], scores: Mapping[str, float]) -> str | None:
    """The left one of the two pieces that llama.cpp joins to a token; None where it does not."""
    pieces = list(text)
    while len(pieces) > 1:
        joints = [
            (scores.get(left + right, -inf), -at)
            for at, (left, right) in enumerate(pairwise(pieces))
            if left + right in tokens
        ]
        if not joints:
            return None
        if len(pieces) == 2:
            return pieces[0]
        at = -max(joints)[1]
        pieces[at : at + 2] = ["".join(pieces[at : at + 2])]
    return None


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")
