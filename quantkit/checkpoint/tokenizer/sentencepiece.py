"""``tokenizer.model``: a SentencePiece vocabulary, with the tokens that were added to it later."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quantkit.checkpoint.tokenizer.fast import tokenizer_class
from quantkit.checkpoint.tokenizer.frame import Frame, frame_by_flags
from quantkit.checkpoint.tokenizer.model_file import ModelSettings, read_settings
from quantkit.checkpoint.tokenizer.source import TokenizerSource
from quantkit.checkpoint.tokenizer.vocabulary import (
    ADDED_SCORE,
    UNUSED_SCORE,
    WORD_BOUNDARY,
    TokenType,
    Vocabulary,
    added_token,
    unused_token,
)
from quantkit.core.errors import TokenizerError
from quantkit.core.files import GIT_LFS_POINTER, read_file


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


def read_alone(source: TokenizerSource, model_file: Path) -> tuple[Vocabulary, bool]:
    """The vocabulary of a tokenizer.model that is a checkpoint's only tokenizer.

    Returns it with whether a text begins with a space, such that llama.cpp splits texts as
    SentencePiece does.

    Raises:
        TokenizerError: the model does what llama.cpp's SentencePiece tokenizer does not.

    """
    vocabulary = read_vocabulary(source, model_file)
    settings = read_settings(model_file)
    wanted = source.settings.get("add_prefix_space")
    prefix = settings.dummy_prefix if wanted is None else bool(wanted)
    require_bpe(settings, model_file)
    tokens, types = list(vocabulary.tokens), list(vocabulary.types)
    faults = []
    unused = [i for i, kind in enumerate(types[: settings.n_pieces]) if kind is TokenType.UNUSED]
    faults += [f"never gives the piece {tokens[i]!r} (it is marked unused)" for i in unused[:1]]
    if prefix:
        faults += [
            f"cuts {text!r} out of a text, the space before the text included"
            for text in symbols(settings, tokens).values()
            if WORD_BOUNDARY in text
        ]
    if faults:
        raise TokenizerError(
            f"{model_file} {faults[0]}, which llama.cpp does not do for a SentencePiece "
            "vocabulary; add the tokenizer.json of the same model, which takes precedence."
        )
    return with_symbols(vocabulary, settings), prefix


def with_symbols(vocabulary: Vocabulary, settings: ModelSettings) -> Vocabulary:
    """The same vocabulary with a model's user-defined symbols as tokens that are cut out of a text.

    The converter takes them for ordinary pieces, which llama.cpp then never makes.
    """
    tokens, types = list(vocabulary.tokens), list(vocabulary.types)
    for i, text in symbols(settings, tokens).items():
        if types[i] is TokenType.NORMAL:
            tokens[i], types[i] = added_token(text, special=False)
    return Vocabulary(tokens, types, vocabulary.scores)


def require_bpe(settings: ModelSettings, model_file: Path) -> None:
    """Check that a model does nothing to a text that llama.cpp's SentencePiece tokenizer does not.

    Raises:
        TokenizerError: it does.

    """
    for fault in _faults(settings):
        raise TokenizerError(
            f"{model_file} {fault}, which llama.cpp does not do for a SentencePiece vocabulary; "
            "quantkit cannot convert this tokenizer."
        )


def _faults(settings: ModelSettings) -> Iterator[str]:
    """What a model does to a text that llama.cpp does not."""
    if settings.kind != "BPE":
        yield f"is a {settings.kind} model, not BPE"
    if settings.normalization:
        yield f"replaces characters of a text first (normalization {settings.normalization})"
    if settings.strips_spaces:
        yield "leaves out spaces at the ends and all but one of several (remove_extra_whitespaces)"
    if settings.spaces_end_words:
        yield "counts a space to the word before it (treat_whitespace_as_suffix)"
    if not settings.escapes_spaces:
        yield "leaves spaces as they are (escape_whitespaces is off)"


def symbols(settings: ModelSettings, tokens: Sequence[str]) -> dict[int, str]:
    """User-defined symbols by id, except characters that no other piece holds: these stay alone.

    Args:
        settings: of the model.
        tokens: by id, the texts of the vocabulary or of its beginning.

    """
    found = {i: tokens[i] for i in sorted(settings.user_defined) if i < len(tokens)}
    return {
        i: symbol
        for i, symbol in found.items()
        if len(symbol) > 1 or any(symbol in text for j, text in enumerate(tokens) if j != i)
    }


def model_frame(source: TokenizerSource, pieces: Any) -> Frame:
    """What surrounds every text where a tokenizer.model is a checkpoint's only tokenizer.

    Where nothing says ``add_bos_token``, BOS is in front: transformers 5, which then puts none
    there, always saves a tokenizer.json, so the folder is from before, and it was so then.

    Raises:
        TokenizerError: a token that is to be added is in no vocabulary.

    """
    kind = tokenizer_class(source)
    own = {
        "bos_token": pieces.bos_id(),
        "eos_token": pieces.eos_id(),
        "unk_token": pieces.unk_id(),
    }
    named = {role: pieces.IdToPiece(i) for role, i in own.items() if i >= 0}
    ids = {pieces.IdToPiece(i): i for i in range(pieces.vocab_size())} | source.added
    ids |= {token["content"]: i for i, token in (source.decoder or {}).items()}
    assumed = {**named, **kind.roles, "add_bos_token": True}
    return frame_by_flags(source.named, assumed, ids, source.folder)


def open_model(model_file: Path) -> Any:
    """A SentencePieceProcessor with a tokenizer.model.

    Raises:
        TokenizerError: the file is no SentencePiece model.

    """
    from sentencepiece import SentencePieceProcessor

    raw = read_file(model_file, error=TokenizerError)
    if raw.startswith(GIT_LFS_POINTER):
        raise TokenizerError(
            f"{model_file} is a Git LFS pointer and not the tokenizer; run `git lfs pull` in its "
            "folder."
        )
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(raw)
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
