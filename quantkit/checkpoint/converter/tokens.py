"""What the converter gets wrong of a tokenizer, and what counts instead.

The checkpoint's own tokenizer is asked twice: as transformers 5 opens it (`reference`), and as the
transformers that the converter was written for does (`library`). Where the converter's keys say
what neither does, they are mended; where one of the two agrees, they stay.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkpoint.checkpoint import Tokens
from quantkit.checkpoint.converter.mended import with_keys
from quantkit.checkpoint.gguf import Header
from quantkit.checkpoint.tokenizer.fast import open_tokenizer
from quantkit.checkpoint.tokenizer.frame import Frame, frame_keys
from quantkit.checkpoint.tokenizer.model_file import read_settings
from quantkit.checkpoint.tokenizer.piece_bpe import is_piece_bpe, scored_vocabulary
from quantkit.checkpoint.tokenizer.reference import open_reference
from quantkit.checkpoint.tokenizer.source import (
    FAIRSEQ,
    SPIECE,
    TokenizerSource,
    read_source,
    unigram_files,
    vocabulary_files,
)
from quantkit.checkpoint.tokenizer.spaces import read_prefix
from quantkit.checkpoint.tokenizer.vocabulary import (
    SENTENCEPIECE_BOS,
    SENTENCEPIECE_EOS,
    TokenType,
    Vocabulary,
    assumes_bos,
)
from quantkit.core.apart import run_apart
from quantkit.core.errors import CheckpointError, TokenizerError

_KEY = "tokenizer.ggml."
_PREFIX = f"{_KEY}add_space_prefix"
# Vocabularies around whose texts llama.cpp puts what keys say; of WordPiece it always puts both.
_FRAMED = ("llama", "gpt2", "t5", "gemma4")
_SECONDS = 120
_SAME_SCORES = (
    "llama.cpp's converter gives all pieces of tokenizer.json the same score, with which llama.cpp "
    "would merge other tokens; GGUF files have the order of its merges."
)


@dataclass(frozen=True, slots=True)
class Opened:
    """What a tokenizer does as transformers 5 opens it.

    ``frame`` surrounds every text, None where that is not to be told. ``space`` says whether a text
    begins with a space, None where that is no key of a GGUF's. ``vocabulary`` is there where its
    scores are asked for and it has some.
    """

    frame: Frame | None
    space: bool | None
    vocabulary: Vocabulary | None = None


def mend(
    folder: Path, config: Mapping[str, Any], header: Header, library: Mapping[str, Any]
) -> tuple[Header, Tokens, list[str]]:
    """The header with keys that say what the checkpoint's own tokenizer does.

    Args:
        folder: the checkpoint.
        config: its config.json.
        header: as the converter describes it, with its entries.
        library: what `library.tell` says; without ``class`` where it could not be opened.

    Returns:
        the header, what is known of the tokens, and a remark on each key that was mended.

    """
    metadata = header.metadata
    config = sized(config, metadata)
    opened = _open(folder, config, scored=_lacks_scores(metadata))
    frames = [opened.frame] if opened and opened.frame else []
    if library.get("before") is not None:
        frames.append(Frame(tuple(library["before"]), tuple(library["after"])))
    keys: dict[str, Any] = {}
    if opened and opened.space is not None and metadata.get(f"{_KEY}model") == "llama":
        keys |= _space_keys(opened.space, metadata)
    keys |= _unknown_keys(metadata)
    if opened and opened.vocabulary:
        keys |= _changed(opened.vocabulary.metadata(), metadata)
    kept = frame_of(metadata)
    frame = kept if kept in frames or not frames else frames[-1]
    if frame != kept and metadata.get(f"{_KEY}model") in _FRAMED:
        keys |= _frame_keys(frame, metadata, folder, config)
    remarks = [
        _remark(key, value, metadata) for key, value in keys.items() if not isinstance(value, list)
    ]
    remarks += [_SAME_SCORES] * any(isinstance(value, list) for value in keys.values())
    tokens = Tokens(frame=(frame.before, frame.after) if frames else None, mended=frozenset(keys))
    return with_keys(header, keys), tokens, remarks


def sized(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json that says how many tokens the GGUF has.

    Wrappers say it in ``text_config``, and some models nowhere.
    """
    return {**config, "vocab_size": max(1, len(metadata.get(f"{_KEY}tokens", ())))}


def vocabulary_file(folder: Path, metadata: Mapping[str, Any]) -> str | None:
    """The file that the converter takes a unigram vocabulary from, None for every other kind.

    It takes SentencePiece's model before a tokenizer.json, which cuts some texts otherwise.
    """
    is_unigram = metadata.get(f"{_KEY}model") == "t5"
    return next(iter(unigram_files(folder)), None) if is_unigram else None


def frame_of(metadata: Mapping[str, Any]) -> Frame:
    """What llama.cpp puts around a text, by the keys of a GGUF.

    Source: ``llama_vocab::impl::load`` and ``tokenize`` in llama.cpp's ``src/llama-vocab.cpp``.
    """

    def token(kind: str, assumed: int | None, *, adds: bool) -> tuple[int, ...]:
        found = metadata.get(f"{_KEY}{kind}_token_id", assumed)
        return (found,) if adds and found is not None else ()

    model = metadata.get(f"{_KEY}model")
    is_piece = model == "llama"
    if model == "bert":
        return Frame(token("bos", 101, adds=True), token("seperator", 102, adds=True))
    adds_bos = bool(metadata.get(f"{_KEY}add_bos_token", assumes_bos(metadata)))
    adds_eos = bool(metadata.get(f"{_KEY}add_eos_token", model == "t5"))
    eos = SENTENCEPIECE_EOS if is_piece else 1 if model == "t5" else None
    return Frame(
        token("bos", SENTENCEPIECE_BOS if is_piece else None, adds=adds_bos),
        token("eos", eos, adds=adds_eos),
    )


def _lacks_scores(metadata: Mapping[str, Any]) -> bool:
    """Whether all pieces have one score, so that llama.cpp merges texts from left to right.

    So it is where the converter makes a SentencePiece vocabulary of a tokenizer.json alone
    (``LlamaHfVocab`` in its ``vocab.py``).
    """
    scores, types = (metadata.get(_KEY + key, []) for key in ("scores", "token_type"))
    pieces = [score for score, kind in zip(scores, types, strict=False) if kind == TokenType.NORMAL]
    is_piece = metadata.get(f"{_KEY}model") == "llama"
    return is_piece and len(pieces) > 1 and len(set(pieces)) == 1


def _changed(keys: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if metadata.get(key) != value}


def _open(folder: Path, config: Mapping[str, Any], *, scored: bool) -> Opened | None:
    """The tokenizer as our own reading has it, None where that does not hold."""

    def work() -> Opened:
        source = read_source(folder, config)
        (first, *_) = vocabulary_files(folder)
        found = open_reference(source, first).frame
        frame = None if first in (SPIECE, FAIRSEQ) else found
        return Opened(frame, _space(source), _scored(source) if scored else None)

    try:
        return run_apart(
            work,
            f"The tokenizer in {folder}",
            seconds=_SECONDS,
            error=TokenizerError,
            fix="download it again",
        )
    except CheckpointError:
        return None


def _scored(source: TokenizerSource) -> Vocabulary | None:
    """The vocabulary of a tokenizer.json with the order of its merges as scores."""
    try:
        is_piece = bool(source.fast) and is_piece_bpe(source)
        return scored_vocabulary(source, open_tokenizer(source)) if is_piece else None
    except TokenizerError:
        return None


def _space(source: TokenizerSource) -> bool | None:
    if not source.fast and source.model_file is not None:
        wanted = source.settings.get("add_prefix_space")
        return read_settings(source.model_file).dummy_prefix if wanted is None else bool(wanted)
    try:
        return read_prefix(source).adds if source.fast else None
    except TokenizerError:
        return None


def _space_keys(space: bool, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Where nothing is said, llama.cpp puts a space in front of a text."""
    return {_PREFIX: space} if metadata.get(_PREFIX, True) != space else {}


def _unknown_keys(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The unknown token of a unigram vocabulary, where it is another than llama.cpp assumes.

    Its type says which it is, and every text without a token gets it. XLM-RoBERTa's is 3, and the
    converter says so only where a tokenizer.json does.
    """
    key = f"{_KEY}unknown_token_id"
    if metadata.get(f"{_KEY}model") != "t5":
        return {}
    types = metadata.get(f"{_KEY}token_type", [])
    unknown = [i for i, kind in enumerate(types) if kind == TokenType.UNKNOWN]
    return {key: unknown[0]} if len(unknown) == 1 and metadata.get(key, 2) != unknown[0] else {}


def _frame_keys(
    frame: Frame, metadata: Mapping[str, Any], folder: Path, config: Mapping[str, Any]
) -> dict[str, Any]:
    source = TokenizerSource(folder, config, config["vocab_size"], {}, {}, {}, None, {}, None)
    said = dict(metadata)
    if metadata.get(f"{_KEY}model") == "t5":
        said.setdefault(f"{_KEY}add_eos_token", True)  # which llama.cpp assumes
    try:
        return frame_keys(frame, said, source)
    except TokenizerError:
        return {}  # llama.cpp puts one token at most; the smoke test says so


def _remark(key: str, value: Any, metadata: Mapping[str, Any]) -> str:
    said = metadata.get(key)
    before = "nothing" if said is None else _word(said)
    return (
        f"llama.cpp's converter says {before} for {key}, the checkpoint's own tokenizer "
        f"{_word(value)}; GGUF files follow the tokenizer."
    )


def _word(value: Any) -> str:
    return str(value).lower()
