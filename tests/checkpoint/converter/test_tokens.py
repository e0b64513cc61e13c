"""Keys of a described vocabulary that contradict the checkpoint's own tokenizer are mended."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint.converter.tokens import frame_of, mend
from quantkit.checkpoint.gguf import Header
from quantkit.checkpoint.tokenizer.frame import Frame
from quantkit.families.keys import Kind, pack
from quantkit.families.model import KeyValue
from quantkit.verification.tokens import expect_tokens
from tests.architectures.small import N_TOKENS
from tests.architectures.tokens import write_tokenizer
from tests.checkpoint.vocabularies import sentencepiece_model

KEY = "tokenizer.ggml."
CONFIG = {"model_type": "qwen3"}
NOTHING_AROUND = {"class": "PreTrainedTokenizerFast", "before": [], "after": []}
BOS_BEFORE = {"class": "LlamaTokenizerFast", "before": [1], "after": []}
BYTE_LEVEL = {"model": "gpt2", "pre": "gpt-2", "bos_token_id": 1, "eos_token_id": 2}


def header(**keys: Any) -> Header:
    """What the converter describes, of which only the vocabulary's keys matter here."""
    metadata: dict[str, Any] = {f"{KEY}tokens": ["x"] * N_TOKENS}
    metadata |= {KEY + key: value for key, value in keys.items()}
    kinds = {bool: Kind.BOOL, int: Kind.UINT32, str: Kind.STRING}
    entries = tuple(
        KeyValue(key, pack(key, value, kinds[type(value)]))
        for key, value in metadata.items()
        if type(value) in kinds
    )
    return Header(metadata, (), 0, entries=entries)


@pytest.fixture
def byte_level(tmp_path: Path) -> Path:
    """A tokenizer that puts nothing around a text, though a flag beside it promises BOS."""
    write_tokenizer(tmp_path, "bytes")
    return tmp_path


def test_flag_that_no_reading_of_the_tokenizer_follows_is_mended(byte_level: Path) -> None:
    described = header(**BYTE_LEVEL, add_bos_token=True)

    mended, tokens, remarks = mend(byte_level, CONFIG, described, NOTHING_AROUND)

    key = f"{KEY}add_bos_token"
    assert mended.metadata[key] is False
    entries = {entry.key: entry.packed for entry in mended.entries}
    assert entries[key].endswith(b"\x00")
    assert [entry.key for entry in mended.entries] == [entry.key for entry in described.entries]
    assert tokens.frame == ((), ())
    assert tokens.mended == {key}
    (remark,) = remarks
    assert key in remark
    assert "says true" in remark


def test_flag_that_the_converters_transformers_follows_stays(byte_level: Path) -> None:
    described = header(**BYTE_LEVEL, add_bos_token=True)

    mended, tokens, remarks = mend(byte_level, CONFIG, described, BOS_BEFORE)

    assert (mended, remarks) == (described, [])
    assert tokens.frame == ((1,), ())


def test_nothing_is_mended_where_no_library_opens_the_tokenizer(tmp_path: Path) -> None:
    described = header(**BYTE_LEVEL, add_bos_token=True)

    mended, tokens, remarks = mend(tmp_path, CONFIG, described, {"why": "it has none"})

    assert (mended, remarks, tokens.frame) == (described, [], None)


def test_space_before_a_text_is_the_tokenizers(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "pieces")
    described = header(model="llama", bos_token_id=1, add_space_prefix=False)

    mended, tokens, _ = mend(tmp_path, CONFIG, described, BOS_BEFORE)

    assert mended.metadata[f"{KEY}add_space_prefix"] is True
    assert tokens.mended == {f"{KEY}add_space_prefix"}


def test_unknown_token_of_a_unigram_vocabulary_is_the_one_of_that_type(tmp_path: Path) -> None:
    described = header(model="t5")
    described.metadata[f"{KEY}token_type"] = [3, 3, 3, 2, 1]

    mended, tokens, _ = mend(tmp_path, CONFIG, described, {"why": "it has none"})

    assert mended.metadata[f"{KEY}unknown_token_id"] == 3
    assert tokens.mended == {f"{KEY}unknown_token_id"}


@pytest.mark.parametrize(
    ("keys", "frame"),
    [
        ({"model": "gpt2", "bos_token_id": 5}, Frame()),
        ({"model": "gpt2", "pre": "llama-bpe", "bos_token_id": 5}, Frame((5,))),
        ({"model": "llama"}, Frame((1,))),
        ({"model": "llama", "add_bos_token": False, "add_eos_token": True}, Frame((), (2,))),
        ({"model": "t5"}, Frame((), (1,))),
        ({"model": "bert"}, Frame((101,), (102,))),
        ({"model": "bert", "bos_token_id": 2, "seperator_token_id": 3}, Frame((2,), (3,))),
        ({"model": "rwkv", "bos_token_id": 0}, Frame()),
    ],
)
def test_what_llama_cpp_puts_around_a_text(keys: dict[str, Any], frame: Frame) -> None:
    assert frame_of({KEY + key: value for key, value in keys.items()}) == frame


def test_bert_like_tokenizer_names_what_llama_cpp_does_otherwise(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "words")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))

    expected = expect_tokens(tmp_path, {"vocab_size": N_TOKENS}, ["1\u20e3 a", "a\x0bb"])

    found = {text: (ids, simpler, names) for text, ids, simpler, names in expected.texts}
    _, simpler, names = found["1\u20e3 a"]
    assert names == ["marks that are no accents"]
    assert simpler == found["1"][0] + found["a"][0]
    _, simpler, names = found["a\x0bb"]
    assert names == ["control characters as spaces"]
    assert simpler == found["a"][0] + found["b"][0]


def test_frame_that_is_known_goes_around_every_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "bytes")

    expected = expect_tokens(tmp_path, {"vocab_size": N_TOKENS}, frame=((7,), (8, 9)))

    assert expected.framed
    assert all(ids[0] == 7 and ids[-2:] == [8, 9] for _, ids in expected.framed)


def test_pieces_of_xlm_roberta_are_counted_behind_its_four_special_tokens(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    model = sentencepiece_model(
        N_TOKENS,
        model_type="unigram",
        byte_fallback=False,
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True,
    )
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model)
    pieces = SentencePieceProcessor(model_proto=model)
    listed = ["<s>", "<pad>", "</s>", "<unk>", *map(pieces.IdToPiece, range(3, N_TOKENS))]

    expected = expect_tokens(
        tmp_path, {"vocab_size": len(listed)}, frame=((0,), (2,)), first="sentencepiece.bpe.model"
    )

    found = {text: ids for text, ids, _, _ in expected.texts}
    text = "The river ran quietly through the old town, past the mill and the market."
    assert [listed[i] for i in found[text]] == pieces.EncodeAsPieces(text)
    assert 0 in found["a<s>b"]
    assert 3 in found["\U0001f642"]
