"""``tokenizer.json`` of SentencePiece-style BPE with byte fallback, where no tokenizer.model is.

llama.cpp gets a vocabulary without merge ranks: every token scores the same.
"""

import re

from quantkit.checkpoint.tokenizer.fast import FastTokenizer, require_room
from quantkit.checkpoint.tokenizer.source import TokenizerSource
from quantkit.checkpoint.tokenizer.vocabulary import (
    ADDED_SCORE,
    UNUSED_SCORE,
    TokenType,
    Vocabulary,
    unused_token,
)
from quantkit.core.errors import TokenizerError

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


def read_vocabulary(source: TokenizerSource, tokenizer: FastTokenizer) -> Vocabulary:
    """The vocabulary, filled up with unused tokens to ``vocab_size``.

    The converter does not fill up here, and llama.cpp then refuses its file: the embeddings have
    more rows than there are tokens.

    Raises:
        TokenizerError: ids are missing, or beyond the vocabulary size.

    """
    by_id = tokenizer.texts_by_id()
    require_room(source, by_id)
    gaps = [i for i in range(len(by_id)) if i not in by_id]
    if gaps:
        raise TokenizerError(
            f"{source.fast_file} has no token with the id {gaps[0]}; copy the file from the "
            "original model."
        )
    size = source.vocab_size
    tokens = [by_id[i] if i in by_id else unused_token(i) for i in range(size)]
    types = [TokenType.UNUSED] * size
    scores = [UNUSED_SCORE] * size
    specials = {tokenizer.ids[text] for text in tokenizer.specials}
    for i, text in by_id.items():
        types[i] = _type(text, added=i >= tokenizer.base_size, special=i in specials)
        scores[i] = ADDED_SCORE
    return Vocabulary(tokens, types, scores)


def _type(text: str, *, added: bool, special: bool) -> TokenType:
    if not added and _BYTE.fullmatch(text):
        return TokenType.BYTE
    if special:
        return TokenType.CONTROL
    return TokenType.USER_DEFINED if added else TokenType.NORMAL
