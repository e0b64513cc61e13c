"""A checkpoint's tokenizer as GGUF metadata: the ``tokenizer.*`` keys.

What is written, and in which order, follows ``conversion/llama.py`` and ``conversion/base.py`` of
the pinned llama.cpp, so that a whole file can equal the converter's byte for byte.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint.tokenizer import byte_level, fast, piece_bpe, sentencepiece
from quantkit.checkpoint.tokenizer.source import TokenizerSource, read_source, tokenizer_files
from quantkit.checkpoint.tokenizer.special import special_metadata
from quantkit.checkpoint.tokenizer.vocabulary import Metadata
from quantkit.core.apart import run_apart
from quantkit.core.errors import TokenizerError

if TYPE_CHECKING:
    import gguf

__all__ = ["add_tokenizer", "tokenizer_files"]

# The vocabulary sizes by which the converter knows two model families, and what it writes for them.
_CODE_LLAMA = 32016
_CODE_LLAMA_INFILL = {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}
_GRANITE = 49152

_SECONDS = 120  # for a vocabulary; the largest take three


def add_tokenizer(writer: "gguf.GGUFWriter", folder: Path, config: Mapping[str, Any]) -> None:
    """Add the ``tokenizer.*`` keys of a checkpoint to a GGUF writer, in the converter's order.

    Args:
        writer: collects the keys; nothing else of it is used.
        folder: the checkpoint.
        config: its config.json; a key that is missing has the default that transformers gives it.

    Raises:
        TokenizerError: the tokenizer is missing, broken, or of a kind that llama.cpp lacks.
        CheckpointError: one of its files is not JSON.

    """
    keys = run_apart(
        lambda: _metadata(read_source(folder, config)),
        f"The tokenizer in {folder}",
        seconds=_SECONDS,
        error=TokenizerError,
        fix="download it again",
    )
    for key, value in keys.items():
        if value == "" or value == []:
            continue
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)


def _metadata(source: TokenizerSource) -> Metadata:
    """All keys in order; a key that is set twice keeps its first place and its last value."""
    metadata: Metadata = {}
    prefix = source.settings.get("add_prefix_space")
    if prefix is not None:
        metadata["tokenizer.ggml.add_space_prefix"] = bool(prefix)
    metadata |= _vocabulary_metadata(source)
    if source.vocab_size == _CODE_LLAMA:
        metadata |= special_metadata(source, kinds=_CODE_LLAMA_INFILL, ids=_CODE_LLAMA_INFILL)
    if source.vocab_size == _GRANITE:
        metadata["tokenizer.ggml.add_bos_token"] = False
    return metadata


def _vocabulary_metadata(source: TokenizerSource) -> Metadata:
    """The vocabulary and its special tokens, from the first tokenizer that llama.cpp can hold."""
    if source.model_file is not None:
        vocabulary = sentencepiece.read_vocabulary(source, source.model_file)
        return _pieces(vocabulary.metadata(), source, len(vocabulary.tokens))
    model = source.fast["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise TokenizerError(
            f"{source.fast_file} is a {kind} tokenizer, which quantkit does not convert; it takes "
            "SentencePiece tokenizer.model files and BPE."
        )
    tokenizer = fast.open_tokenizer(source)
    if model.get("byte_fallback") and (source.fast.get("decoder") or {}).get("type") == "Sequence":
        vocabulary = piece_bpe.read_vocabulary(source, tokenizer)
        return _pieces(vocabulary.metadata(), source, len(vocabulary.tokens))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": byte_level.name_pre_tokenizer(source, tokenizer),
        **byte_level.read_vocabulary(source, tokenizer).metadata(),
        "tokenizer.ggml.merges": byte_level.merges(source),
        **special_metadata(source),
    }


def _pieces(vocabulary: Metadata, source: TokenizerSource, n_vocab: int) -> Metadata:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        **vocabulary,
        **special_metadata(source, n_vocab=n_vocab),
    }
