"""A text as the token ids of a checkpoint's own tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.checkpoint.tokenizer.encode import EncodedText, encode_pieces


def encode_text(folder: Path, config: Mapping[str, Any], text: str) -> EncodedText:
    """All of it text: nothing in it is taken for a special token."""
    return encode_pieces(folder, config, [(text, False)])
