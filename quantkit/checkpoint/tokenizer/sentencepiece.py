"""``tokenizer.model``: a SentencePiece vocabulary, with the tokens that were added to it later."""

from pathlib import Path
from typing import Any

from quantkit.checkpoint.tokenizer.source import TokenizerSource
from quantkit.checkpoint.tokenizer.vocabulary import (
    ADDED_SCORE,
    UNUSED_SCORE,
    TokenType,
    Vocabulary,
    added_token,
    unused_token,
)
from quantkit.core.errors import TokenizerError


def read_vocabulary(source: TokenizerSource, model_file: Path) -> Vocabulary:
    """The vocabulary of a tokenizer.model, ``vocab_size`` tokens of it.

    Ids that no token has are unused; tokens beyond the size have no row in the embeddings, so they
    are left out.

    Raises:
        TokenizerError: the file is no SentencePiece model.

    """
    processor = open_model(model_file)
    size = source.vocab_size
    tokens = [unused_token(i) for i in range(size)]
    types = [TokenType.UNUSED] * size
    scores = [UNUSED_SCORE] * size
    for i in range(min(size, processor.vocab_size())):
        tokens[i] = processor.IdToPiece(i)
        types[i] = _type(processor, i)
        scores[i] = processor.GetScore(i)
    for text, i in source.added.items():
        if i < size:
            tokens[i], types[i], scores[i] = text, TokenType.USER_DEFINED, ADDED_SCORE
    for i, token in (source.decoder or {}).items():
        if i < size:
            tokens[i], types[i] = added_token(token["content"], special=bool(token.get("special")))
            scores[i] = ADDED_SCORE
    return Vocabulary(tokens, types, scores)


def open_model(model_file: Path) -> Any:
    """A SentencePieceProcessor with a tokenizer.model.

    Raises:
        TokenizerError: the file is no SentencePiece model.

    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(model_file))
    except (OSError, RuntimeError) as error:
        raise TokenizerError(
            f"{model_file} is not a SentencePiece model; download it again, or move it away if the "
            "folder has the same tokenizer as tokenizer.json."
        ) from error
    return processor


def _type(processor: Any, token_id: int) -> TokenType:
    if processor.IsUnknown(token_id):
        return TokenType.UNKNOWN
    if processor.IsControl(token_id):
        return TokenType.CONTROL
    if processor.IsUnused(token_id):
        return TokenType.UNUSED
    if processor.IsByte(token_id):
        return TokenType.BYTE
    return TokenType.NORMAL
