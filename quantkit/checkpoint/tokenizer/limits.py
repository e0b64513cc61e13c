"""What a vocabulary must be like so that llama.cpp opens it and splits every text with it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from quantkit.checkpoint.tokenizer.vocabulary import TokenType, Vocabulary
from quantkit.core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import AddedToken


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


def require_plain(added: "Iterable[AddedToken]", where: object, *, prepends: bool) -> None:
    """Check that added tokens are found in a text as llama.cpp finds them: wherever they stand.

    Args:
        added: tokens that are cut out of a text before it is split.
        where: the file, for messages.
        prepends: whether the normalizer puts a space in front of a text.

    Raises:
        TokenizerError: one is not.

    """
    for token in added:
        sides = [side for side in ("lstrip", "rstrip") if getattr(token, side)]
        if sides:
            fault = f"takes the spaces beside it ({' and '.join(sides)})"
        elif token.single_word:
            fault = "is no token inside a word (single_word)"
        elif token.normalized and prepends:
            # The normalizer puts the space in front of the token, too, which is then looked for.
            fault = "is one only behind a space (normalized)"
        else:
            continue
        raise TokenizerError(
            f"The added token {token.content!r} of {where} {fault}; llama.cpp does not do that. "
            "If the model does not depend on it, set that flag to false in tokenizer.json and "
            "tokenizer_config.json."
        )
