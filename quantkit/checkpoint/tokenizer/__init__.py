"""A checkpoint's tokenizer as GGUF metadata: the ``tokenizer.*`` keys.

What is written, and in which order, follows ``conversion/llama.py`` and ``conversion/base.py`` of
the pinned llama.cpp, so that a whole file can equal the converter's byte for byte.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint.tokenizer import byte_level, fast, piece_bpe, sentencepiece
from quantkit.checkpoint.tokenizer.frame import Frame, frame_keys
from quantkit.checkpoint.tokenizer.limits import require_bytes, require_distinct
from quantkit.checkpoint.tokenizer.model_file import read_settings
from quantkit.checkpoint.tokenizer.source import TokenizerSource, read_source, tokenizer_files
from quantkit.checkpoint.tokenizer.spaces import read_prefix
from quantkit.checkpoint.tokenizer.special import special_metadata
from quantkit.checkpoint.tokenizer.tekken import tekken_metadata
from quantkit.checkpoint.tokenizer.vocabulary import Metadata, Vocabulary
from quantkit.core.apart import run_apart
from quantkit.core.errors import TokenizerError

if TYPE_CHECKING:
    import gguf

__all__ = ["add_keys", "add_tokenizer", "name_pre_tokenizer", "tokenizer_files"]

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
    add_keys(writer, keys)


def add_keys(writer: "gguf.GGUFWriter", keys: Metadata) -> None:
    """Add keys to a GGUF writer, but empty ones."""
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


def name_pre_tokenizer(folder: Path, config: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a checkpoint's tokenizer.json splits text before it merges.

    Raises:
        TokenizerError: there is no tokenizer.json, or llama.cpp has none that splits like this.
        CheckpointError: one of the tokenizer's files is not JSON.

    """

    def name() -> str:
        source = read_source(folder, config)
        if source.fast.get("model", {}).get("type") == "WordPiece":
            return "default"  # llama.cpp splits all of them alike (llm_tokenizer_wpm_session)
        return byte_level.name_pre_tokenizer(source, fast.open_tokenizer(source))

    return run_apart(
        name,
        f"The tokenizer in {folder}",
        seconds=_SECONDS,
        error=TokenizerError,
        fix="download it again",
    )


def _metadata(source: TokenizerSource) -> Metadata:
    """All keys in order; a key that is set twice keeps its first place and its last value."""
    if source.tekken_file is not None:
        return tekken_metadata(source, source.tekken_file)
    metadata: Metadata = {}
    wanted = source.settings.get("add_prefix_space")
    is_piece = not source.fast or _is_piece_bpe(source)
    tokenizer = fast.open_tokenizer(source) if source.fast else None
    if tokenizer is not None and not is_piece:
        if wanted is not None:
            metadata["tokenizer.ggml.add_space_prefix"] = bool(wanted)
        metadata |= _byte_level(source, tokenizer)
    else:
        vocabulary, prefix = _pieces(source, tokenizer)
        # Where nothing is said, llama.cpp puts a space in front of a text.
        if wanted is not None or not prefix:
            metadata["tokenizer.ggml.add_space_prefix"] = prefix
        metadata |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
        metadata |= vocabulary.metadata()
        metadata |= special_metadata(source, n_vocab=len(vocabulary.tokens))
    if source.vocab_size == _CODE_LLAMA:
        metadata |= special_metadata(source, kinds=_CODE_LLAMA_INFILL, ids=_CODE_LLAMA_INFILL)
    if source.vocab_size == _GRANITE:
        metadata["tokenizer.ggml.add_bos_token"] = False
    return metadata | frame_keys(_frame(source, tokenizer), metadata, source)


def _frame(source: TokenizerSource, tokenizer: fast.FastTokenizer | None) -> Frame:
    if tokenizer is not None:
        return tokenizer.frame
    assert source.model_file is not None  # noqa: S101 - read_source has seen one of the two
    return sentencepiece.model_frame(source, sentencepiece.open_model(source.model_file))


def _is_piece_bpe(source: TokenizerSource) -> bool:
    model = source.fast["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise TokenizerError(
            f"{source.fast_file} is a {kind} tokenizer, which quantkit does not convert; it takes "
            "SentencePiece tokenizer.model files and BPE."
        )
    return piece_bpe.is_piece_bpe(source)


def _byte_level(source: TokenizerSource, tokenizer: fast.FastTokenizer) -> Metadata:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": byte_level.name_pre_tokenizer(source, tokenizer),
        **byte_level.read_vocabulary(source, tokenizer).metadata(),
        "tokenizer.ggml.merges": byte_level.merges(source),
        **special_metadata(source),
    }


def _pieces(
    source: TokenizerSource, tokenizer: fast.FastTokenizer | None
) -> tuple[Vocabulary, bool]:
    """A vocabulary with scores, and whether a text begins with a space.

    tokenizer.json says how texts are split where it is there, as transformers takes it; of a
    tokenizer.model beside it only the scores are used, if they say the same.
    """
    model_file = source.model_file
    if tokenizer is None:
        assert model_file is not None  # noqa: S101 - read_source has seen one of the two
        vocabulary, prefix = sentencepiece.read_alone(source, model_file)
    else:
        prefix = read_prefix(source).adds
        if model_file is None:
            vocabulary = piece_bpe.read_vocabulary(source, tokenizer)
        else:
            vocabulary = piece_bpe.scored_vocabulary(source, tokenizer)
            others = sentencepiece.read_vocabulary(source, model_file)
            with_symbols = sentencepiece.with_symbols(others, read_settings(model_file))
            same = (v for v in (others, with_symbols) if piece_bpe.same_order(vocabulary, v))
            vocabulary = next(same, vocabulary)
    where = source.fast_file if source.fast else model_file
    require_distinct(vocabulary, where)
    require_bytes(vocabulary, where)
    return vocabulary, prefix
