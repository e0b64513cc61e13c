"""Text to token ids, as llama.cpp has them with the vocabulary that a checkpoint's GGUF gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkpoint.tokenizer.fast import open_tokenizer
from quantkit.checkpoint.tokenizer.sentencepiece import model_frame, open_model
from quantkit.checkpoint.tokenizer.source import read_source
from quantkit.checkpoint.tokenizer.tekken import open_tekken, tekken_backend
from quantkit.core.apart import run_apart
from quantkit.core.errors import TokenizerError

_SECONDS = 3600  # for a text of many megabytes; some tokenizers end after never


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Token ids of a text.

    ``bos`` is the token that every sequence begins with, None where the model wants none.
    """

    ids: list[int]
    bos: int | None


def encode_pieces(
    folder: Path, config: Mapping[str, Any], pieces: Sequence[tuple[str, bool]]
) -> EncodedText:
    """Encode pieces of text with a checkpoint's own tokenizer, one after the other.

    Args:
        folder: the checkpoint.
        config: its config.json.
        pieces: texts, and whether what looks like a special token in them is one. In text that
            comes from anywhere it is not.

    Raises:
        TokenizerError: the tokenizer is missing or broken, of another model, or has no special
            tokens that could be found in a text.

    """
    return run_apart(
        lambda: _encode(folder, config, pieces),
        f"The tokenizer in {folder}",
        seconds=_SECONDS,
        error=TokenizerError,
        fix="download it again",
    )


def _encode(
    folder: Path, config: Mapping[str, Any], pieces: Sequence[tuple[str, bool]]
) -> EncodedText:
    source = read_source(folder, config)
    if any(special for _, special in pieces) and (source.tekken_file or not source.fast):
        raise TokenizerError(
            f"{folder} has no tokenizer.json, which conversations need: no other tokenizer finds "
            "special tokens in a text. Download it, or give text without --chat."
        )
    ids: list[int] = []
    if source.tekken_file is not None:
        tekken = open_tekken(source, source.tekken_file)
        backend = tekken_backend(tekken)
        for text, _ in pieces:
            ids += backend.encode(text, add_special_tokens=False).ids
        return EncodedText(ids, tekken.special_ids["bos"])
    if source.fast:
        tokenizer = open_tokenizer(source)
        for text, special in pieces:
            tokenizer.backend.encode_special_tokens = not special
            ids += tokenizer.backend.encode(text, add_special_tokens=False).ids
        bos = tokenizer.frame.before
    else:
        assert source.model_file is not None  # noqa: S101 - read_source has seen one of the two
        model = open_model(source.model_file)
        for text, _ in pieces:
            ids += model.EncodeAsIds(text)
        bos = model_frame(source, model).before
    if ids and max(ids) >= source.vocab_size:
        raise TokenizerError(
            f"The tokenizer in {folder} gives token {max(ids)}, but config.json says vocab_size = "
            f"{source.vocab_size}; copy the tokenizer files and config.json of one model."
        )
    return EncodedText(ids, bos[0] if bos else None)
