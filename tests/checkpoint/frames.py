"""What stands around every text: as transformers has it, and as a GGUF's keys say it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.checkpoint.tokenizer.vocabulary import assumes_bos

Frame = tuple[list[int], list[int]]


def frame_of(folder: Path) -> Frame:
    """The ids that transformers' tokenizer puts before and after a text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids, bare = (tokenizer.encode("a", add_special_tokens=added) for added in (True, False))
    start = next(i for i in range(len(ids)) if ids[i : i + len(bare)] == bare)
    return ids[:start], ids[start + len(bare) :]


def said_frame(keys: Mapping[str, Any]) -> Frame:
    """What llama.cpp puts around a text with these ``tokenizer.*`` keys."""
    of_pieces = keys["tokenizer.ggml.model"] == "llama"

    def ids(kind: str, default: int, adds: bool) -> list[int]:
        token = keys.get(f"tokenizer.ggml.{kind}_token_id", default if of_pieces else None)
        return [token] if keys.get(f"tokenizer.ggml.add_{kind}_token", adds) else []

    return ids("bos", 1, assumes_bos(keys)), ids("eos", 2, False)
