"""What a vocabulary must be like so that llama.cpp opens it and splits every text with it."""

from quantkit.checkpoint.tokenizer.vocabulary import TokenType, Vocabulary
from quantkit.core.errors import TokenizerError


def require_bytes(vocabulary: Vocabulary, where: object) -> None:
    """Check that a SentencePiece vocabulary has a piece for every byte.

    llama.cpp takes them for characters without a piece, and aborts where one is not there.

    Raises:
        TokenizerError: a byte has no piece, or one of another type.

    """
    types = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    for byte in range(256):
        piece = f"<0x{byte:02X}>"
        if types.get(piece) is not TokenType.BYTE:
            lacks = "lacks the byte piece" if piece not in types else "has as no byte piece"
            raise TokenizerError(
                f"{where} {lacks} {piece}: llama.cpp writes characters that are not in the "
                "vocabulary (emoji, often line breaks) as bytes and aborts without; quantkit "
                "converts only vocabularies with all 256 (byte_fallback)."
            )


def require_distinct(vocabulary: Vocabulary, where: object) -> None:
    """Check that no two tokens have one text, for which llama.cpp does not open a file.

    Raises:
        TokenizerError: two have.

    """
    seen: dict[str, int] = {}
    for token_id, text in enumerate(vocabulary.tokens):
        if text and seen.setdefault(text, token_id) != token_id:
            raise TokenizerError(
                f"{where} has the token {text!r} twice, as {seen[text]} and {token_id}, which "
                "llama.cpp does not load; correct the added tokens."
            )
