"""Text to token ids, as llama.cpp has them with the vocabulary that a checkpoint's GGUF gets."""

from collections.abc import Mapping
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
    """Token ids of a text, with no special token among them.

    ``bos`` is the token that every sequence begins with, None where the model wants none.
    """

    ids: list[int]
    bos: int | None


def encode_text(folder: Path, config: Mapping[str, Any], text: str) -> EncodedText:
    """Encode a text with a checkpoint's own tokenizer.

    What looks like a special token in the text is text: calibration files come from anywhere.

    Raises:
        TokenizerError: the tokenizer is missing or broken, or of another model.

    """
    return run_apart(
        lambda: _encode(folder, config, text),
        f"The tokenizer in {folder}",
        seconds=_SECONDS,
        error=TokenizerError,
        fix="download it again",
    )


def _encode(folder: Path, config: Mapping[str, Any], text: str) -> EncodedText:
    source = read_source(folder, config)
    if source.tekken_file is not None:
        tekken = open_tekken(source, source.tekken_file)
        ids = tekken_backend(tekken).encode(text, add_special_tokens=False).ids
        return EncodedText(ids, tekken.special_ids["bos"])
    if source.fast:
        tokenizer = open_tokenizer(source)
        tokenizer.backend.encode_special_tokens = True
        ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
        bos = tokenizer.frame.before
    else:
        assert source.model_file is not None  # noqa: S101 - read_source has seen one of the two
        pieces = open_model(source.model_file)
        ids = pieces.EncodeAsIds(text)
        bos = model_frame(source, pieces).before
    if ids and max(ids) >= source.vocab_size:
        raise TokenizerError(
            f"The tokenizer in {folder} gives token {max(ids)}, but config.json says vocab_size = "
            f"{source.vocab_size}; copy the tokenizer files and config.json of one model."
        )
    return EncodedText(ids, bos[0] if bos else None)
