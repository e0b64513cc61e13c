"""A checkpoint's own tokenizer, opened by the library that it was made for.

What became of it as GGUF metadata is not asked here: this is what that is compared with.
``tokenizer.json`` is opened by tokenizers (as transformers opens it, see `fast`),
``tokenizer.model`` by SentencePiece, ``tekken.json`` by tiktoken, as mistral-common does.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint.tokenizer.fast import FastTokenizer, open_tokenizer
from quantkit.checkpoint.tokenizer.frame import Frame
from quantkit.checkpoint.tokenizer.model_file import read_settings
from quantkit.checkpoint.tokenizer.sentencepiece import model_frame, open_model, symbols
from quantkit.checkpoint.tokenizer.simplified import (
    ASCII_CASE,
    berts,
    simplify_fast,
    splits_by_case,
    strips_accents,
)
from quantkit.checkpoint.tokenizer.source import (
    FAIRSEQ,
    FAST,
    MODEL,
    SPIECE,
    TEKKEN,
    TokenizerSource,
    steps,
)
from quantkit.checkpoint.tokenizer.spaces import prepend_scheme
from quantkit.checkpoint.tokenizer.tekken import PATTERN, read_tekken
from quantkit.checkpoint.tokenizer.vocabulary import WORD_BOUNDARY
from quantkit.core.files import read_file

if TYPE_CHECKING:
    pass

# A NormalizerSpec (field 3 of a ModelProto) with add_dummy_prefix (its field 3) false. Protocol
# buffers merge what is appended. Source: sentencepiece_model.proto.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in raw text before anything else is done with it.

    The flags are those of tokenizers' ``AddedToken``: the token takes the white space on its left
    or right with it, is only found as a whole word, or is looked for in the normalized text. One
    that is ``inner`` does not part what is around it: a space is put in front of the whole.
    """

    text: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    inner: bool = False


@dataclass(frozen=True, slots=True)
class Traits:
    """What a tokenizer does besides merging; `deviations` tells what of it a GGUF cannot say."""

    added: tuple[AddedToken, ...] = ()
    composes: bool = False
    """It brings text into Unicode's form NFC."""
    prefixes_first: bool = False
    """Only the begin of a text gets a space in front, what follows an added token gets none."""
    keeps_space: bool = False
    """What begins with a space gets no further one in front."""
    splits_by_case: bool = False
    """It splits words where letters of any script change their case; see `ASCII_CASE`."""
    cleans: bool = False
    """It leaves out control characters that count as white space, as BERT's does."""
    keeps_marks: bool = False
    """It leaves out accents, but not all combining marks, as BERT's does."""
    normalizes: bool = False
    """It changes text before it looks for added tokens that are ``normalized``."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An opened tokenizer.

    ``encode`` gives the ids of a text, special tokens in it parsed and none put around it;
    ``frame`` are those that surround a text. ``simplify`` makes of the tokenizer what
    a GGUF can say of it (no trait that `deviations` lists) and returns what then encodes; the
    tokenizer is changed by that, so ``encode`` must not be used afterwards. ``decode``
    gives a text for ids below ``n_ids``, with signs of replacement for what is none.
    """

    file: str
    traits: Traits
    n_ids: int
    encode: Callable[[str], list[int]]
    frame: Frame
    decode: Callable[[list[int]], str]
    simplify: Callable[[], Callable[[str], list[int]]]


def open_reference(source: TokenizerSource, file: str) -> Reference:
    """Open one of a folder's tokenizers.

    Args:
        source: the tokenizer files.
        file: one of `vocabulary_files`, or of `unigram_files`.

    Raises:
        TokenizerError: its library cannot read it.

    """
    if file in (MODEL, SPIECE, FAIRSEQ):
        return _open_sentencepiece(replace(source, model_file=source.folder / file))
    return {FAST: _open_fast, TEKKEN: _open_tekken}[file](source)


# tokenizer.json


def _open_fast(source: TokenizerSource) -> Reference:
    tokenizer = open_tokenizer(source)
    backend = tokenizer.backend
    backend.encode_special_tokens = False
    normalizer = steps(source.opened.get("normalizer"), "normalizers")
    metaspace = _metaspace(tokenizer)
    flags = ("lstrip", "rstrip", "single_word", "normalized")
    traits = Traits(
        added=tuple(
            AddedToken(token.content, **{flag: getattr(token, flag) for flag in flags})
            for token in tokenizer.added.values()
        ),
        composes=any(step.get("type") == "NFC" for step in normalizer),
        prefixes_first=metaspace.get("prepend_scheme") == "first",
        keeps_space=metaspace.get("prepend_scheme", "never") != "never",
        splits_by_case=any(map(splits_by_case, steps(tokenizer.pre_tokenizer, "pretokenizers"))),
        cleans=any(step.get("clean_text") for step in berts(normalizer)),
        keeps_marks=any(map(strips_accents, berts(normalizer))),
        normalizes=bool(normalizer),
    )

    def encode(text: str) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    def simplify() -> Callable[[str], list[int]]:
        simplify_fast(tokenizer, normalizer, metaspace)
        return encode

    return Reference(
        FAST, traits, tokenizer.base_size, encode, tokenizer.frame, backend.decode, simplify
    )


def _metaspace(tokenizer: FastTokenizer) -> Mapping[str, Any]:
    """The pre-tokenizer that stands for SentencePiece's treatment of spaces, if it is that."""
    part = tokenizer.pre_tokenizer
    if part.get("type") != "Metaspace":
        return {}
    return {**part, "prepend_scheme": prepend_scheme(part)}


# tokenizer.model


def _open_sentencepiece(source: TokenizerSource) -> Reference:
    """SentencePiece, with what stands between added tokens encoded on its own.

    So do transformers' tokenizers that are not fast (``tokenization_utils.py`` of 4.57), and
    llama.cpp. Where tokenizer_config.json says ``"legacy": false``, only the begin of a text gets
    SentencePiece's space in front (``LlamaTokenizer.tokenize`` there).
    """
    assert source.model_file is not None  # noqa: S101 - it is one of vocabulary_files
    path = source.model_file
    pieces = open_model(path)
    added = _sentencepiece_tokens(source, pieces)
    inner = {
        i: AddedToken(text.replace(WORD_BOUNDARY, " "), inner=True)
        for i, text in symbols(read_settings(path), _pieces(source, pieces)).items()
        if i not in added
    }
    # A model without SentencePiece's dummy prefix has none to leave out.
    first_only = source.settings.get("legacy") is False and pieces.EncodeAsPieces("a")[0] != "a"
    ids = {token.text: token_id for token_id, token in (inner | added).items()}
    place = _fairseq_id if path.name == FAIRSEQ else int

    def encoder(tokens: Iterable[AddedToken], later: Any) -> Callable[[str], list[int]]:
        split = splitter(tokens)

        def encode(text: str) -> list[int]:
            found: list[int] = []
            for number, (part, is_token) in enumerate(split(text)):
                if is_token:
                    found.append(ids[part])
                else:
                    found += map(place, (later if number else pieces).EncodeAsIds(part))
            return found

        return encode

    encode = encoder(added.values(), _without_prefix(path) if first_only else pieces)
    return Reference(
        path.name,
        Traits((*added.values(), *inner.values()), prefixes_first=first_only),
        pieces.vocab_size(),
        encode,
        frame=model_frame(source, pieces),
        decode=pieces.DecodeIds,
        simplify=lambda: encoder([AddedToken(text) for text in ids], pieces),
    )


def _pieces(source: TokenizerSource, pieces: Any) -> list[str]:
    return [pieces.IdToPiece(i) for i in range(min(pieces.vocab_size(), source.vocab_size))]


def _sentencepiece_tokens(source: TokenizerSource, pieces: Any) -> dict[int, AddedToken]:
    """By id, what is found in raw text: control tokens and what other files add."""
    assert source.model_file is not None  # noqa: S101 - its pieces are given
    place = _fairseq_id if source.model_file.name == FAIRSEQ else int
    tokens = {
        place(i): AddedToken(pieces.IdToPiece(i))
        for i in range(pieces.vocab_size())
        if pieces.IsControl(i) or pieces.IsUnknown(i)
    }
    tokens |= {i: AddedToken(text) for text, i in source.added.items()}
    for i, entry in (source.decoder or {}).items():
        strips = {flag: bool(entry.get(flag)) for flag in ("lstrip", "rstrip")}
        tokens[i] = AddedToken(entry["content"], **strips)
    return {i: token for i, token in tokens.items() if token.text and i < source.vocab_size}


def _fairseq_id(piece: int) -> int:
    """The id of a piece in XLM-RoBERTa's vocabulary.

    Source: ``XLMRobertaTokenizer`` of transformers 4.57: <s>, <pad>, </s> and <unk> come first.
    """
    return {0: 3, 1: 0, 2: 2}.get(piece, piece + 1)


def _without_prefix(path: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=read_file(path) + _NO_DUMMY_PREFIX)


# tekken.json


def _open_tekken(source: TokenizerSource) -> Reference:
    """tiktoken, with special tokens taken out of the text first.

    Sources: ``Tekkenizer`` in mistral-common 1.8, which finds no special token in text;
    transformers' ``MistralConverter`` does.
    """
    from tiktoken import Encoding

    tekken = read_tekken(source.folder / TEKKEN)
    named = {text: token_id for token_id, text in enumerate(tekken.specials)}
    split = splitter(map(AddedToken, named))

    def opened(pattern: str) -> Encoding:
        ranks = dict(tekken.ranks)
        return Encoding(TEKKEN, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def encoder(encoding: Encoding) -> Callable[[str], list[int]]:
        def encode(text: str) -> list[int]:
            found: list[int] = []
            for part, is_token in split(text):
                if is_token:
                    found.append(named[part])
                else:
                    found += [len(named) + token for token in encoding.encode_ordinary(part)]
            return found

        return encode

    encoding = opened(PATTERN)
    encode = encoder(encoding)
    return Reference(
        TEKKEN,
        Traits(tuple(map(AddedToken, named)), splits_by_case=True),
        len(tekken.ranks),
        encode,
        frame=Frame(before=(named["<s>"],)),
        decode=encoding.decode,
        simplify=lambda: encoder(opened(ASCII_CASE[PATTERN])),
    )


# What tokenizer.model and tekken.json share: their libraries know nothing of added tokens.


def splitter(tokens: Iterable[AddedToken]) -> Callable[[str], Iterator[tuple[str, bool]]]:
    """What cuts a text into added tokens and what is between them, each with whether it is one.

    The leftmost token counts, and the longest of those that begin there; white space that a token
    takes with it is in no part.
    """
    known = {token.text: token for token in tokens}
    lengths: dict[str, list[int]] = {}
    for text in sorted(known, key=len, reverse=True):
        if len(text) not in (found := lengths.setdefault(text[0], [])):
            found.append(len(text))

    def split(text: str) -> Iterator[tuple[str, bool]]:
        end = at = 0
        while at < len(text):
            there = (text[at : at + n] for n in lengths.get(text[at], ()))
            token = next((known[piece] for piece in there if piece in known), None)
            if token is None:
                at += 1
                continue
            between = text[end:at]
            if between := between.rstrip() if token.lstrip else between:
                yield between, False
            yield token.text, True
            end = at = at + len(token.text)
            while token.rstrip and text[at : at + 1].isspace():
                end = at = at + 1
        if end < len(text):
            yield text[end:], False

    return split
