"""Tokens as llama.cpp gives them with the vocabulary that quantkit writes for a folder."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from pydoc_data.topics import topics

from quantkit.checkpoint.tokenizer import add_tokenizer

# Text of which each line has hurt some tokenizer.
HURTING = (
    "  two  spaces  ",
    "\ttab",
    "a\nb\n\n\nc",
    "x\r\ny",
    "\n" * 9,
    " " * 40 + "x",
    "caf\u00e9 cafe\u0301",
    "\U0001f999 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u00a0 no-break",
    "\u4f60\u597d\u4e16\u754c \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0e20\u0e32\u0e29\u0e32",
    "\u2581\u2581x \u2581",
    "12345 3.14",
    "\x01\x02\x7f",
    "don't DON'T I'LL we'Ve",
    "<0x0A>",
    "a" * 200,
    "\ufb01ne \u2460 \uff21",
)
ENGLISH = tuple(
    line for name in sorted(topics)[:24] for line in topics[name].splitlines() if line.strip()
)
TEXTS = (*HURTING, *ENGLISH)


def write_vocabulary(folder: Path) -> Path:
    """Write a GGUF that holds a folder's tokenizer and nothing else."""
    from gguf import GGUFWriter

    out = folder / "ours.gguf"
    writer = GGUFWriter(out, "llama")
    add_tokenizer(writer, folder, json.loads((folder / "config.json").read_text()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return out


def llama_tokenizer(folder: Path, *, special: bool = True) -> Callable[[str], list[int]]:
    """llama.cpp's token ids of a text with a folder's vocabulary, no BOS in front.

    ``special``: whether special tokens are found in the text, as transformers does.
    """
    from llama_cpp import Llama

    llama = Llama(str(write_vocabulary(folder)), vocab_only=True, verbose=False)
    return lambda text: llama.tokenize(text.encode(), add_bos=False, special=special)


def differing(
    folder: Path,
    encode: Callable[[str], list[int]],
    texts: Iterable[str] = TEXTS,
    *,
    special: bool = True,
) -> list[str]:
    """The texts to which llama.cpp and a checkpoint's own tokenizer give different tokens."""
    tokenize = llama_tokenizer(folder, special=special)
    return [text for text in texts if tokenize(text) != encode(text)]
