"""llama.cpp's tokens against those of the checkpoint's own tokenizer, and what a difference does.

Vocabularies are written as quantkit writes them and then changed as a missing mending would have
left them, so that each test fails without the comparison, whatever is mended elsewhere.
"""

import json
import re
import resource
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint.raw_tokenizer import add_tokenizer_files
from quantkit.checkpoint.tokenizer import add_tokenizer
from quantkit.checkpoint.tokenizer.deviations import DEVIATIONS, describe_tokens
from quantkit.checkpoint.tokenizer.frame import Frame
from quantkit.checkpoint.tokenizer.reference import (
    AddedToken,
    open_reference,
    splitter,
)
from quantkit.checkpoint.tokenizer.source import read_source, vocabulary_files
from quantkit.core.errors import TokenizerError
from quantkit.verification.smoke import SmokeResult, smoke
from quantkit.verification.specimen import write_specimen
from quantkit.verification.texts import hurting_texts
from quantkit.verification.tokens import ExpectedTokens, expect_tokens, show_ids, show_text
from tests.checkpoint import vocabularies as v

N_VOCAB = 512
CONFIG = {"model_type": "llama", "vocab_size": N_VOCAB, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "add_bos_token": True,
}
AS_IT_IS = {"tokenizer_class": "PreTrainedTokenizerFast"}
PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False}
TOOL = v.added(420, "<tool>", special=False)
# What appended to a tokenizer.model changes one setting: fields of sentencepiece_model.proto.
UNIGRAM = b"\x12\x02\x18\x01"
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
STRIPS_SPACES = b"\x1a\x02\x20\x01"

Metadata = dict[str, Any]


class Keys:
    """Takes the place of a GGUFWriter and keeps what is added."""

    def __init__(self) -> None:
        self.values: Metadata = {}

    def add(self, key: str, value: Any) -> None:
        self.values[key.removeprefix("tokenizer.ggml.")] = value

    add_string = add_bool = add_uint32 = add_array = add


def keys_of(folder: Path) -> Metadata:
    """What a GGUF says of a folder's tokenizer."""
    keys = Keys()
    add_tokenizer(keys, folder, CONFIG)  # type: ignore[arg-type]
    return keys.values


def write_gguf(path: Path, folder: Path, change: Callable[[Metadata], None] | None) -> Path:
    """A tiny model with the vocabulary of a folder, its keys changed before they are written."""
    keys = keys_of(folder)
    if change:
        change(keys)

    def add(writer: Any) -> None:
        kinds = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        for key, value in keys.items():
            full = key if key.startswith("tokenizer.") else f"tokenizer.ggml.{key}"
            kinds.get(type(value), writer.add_array)(full, value)

    return write_specimen(path, add_vocabulary=add, n_vocab=N_VOCAB)


def checked(
    tmp_path: Path,
    folder: Path,
    change: Callable[[Metadata], None] | None = None,
    *,
    expected: ExpectedTokens | None = None,
) -> SmokeResult:
    file = write_gguf(tmp_path / "model.gguf", folder, change)
    return smoke(file, threads=1, tokens=expected or expect_tokens(folder, CONFIG))


def pieces(folder: Path, *added: v.Json, model: bytes | None = None, **settings: Any) -> Path:
    """A checkpoint's tokenizer.model alone, with added tokens."""
    decoder = {"added_tokens_decoder": v.decoder_entries(*added)} if added else {}
    model = model or v.sentencepiece_model()
    return v.write(folder, model=model, settings={**LLAMA, **decoder, **settings})


def fast_pieces(folder: Path, *added: v.Json, **changes: Any) -> Path:
    """The same as a tokenizer.json alone that counts as it is; ``changes`` are to its parts."""
    opening = v.template(["<s>"])
    opening["special_tokens"]["<s>"]["ids"] = [1]
    fast = {**v.piece_bpe(*added, post_processor=opening), **changes}
    return v.write(folder, fast=fast, settings={**LLAMA, **AS_IT_IS})


def byte_level(
    folder: Path,
    *added: v.Json,
    split: v.Json | None = None,
    normalizer: v.Json | None = None,
    ignore_merges: bool = False,
) -> Path:
    """A byte-level tokenizer.json that by default splits as Qwen's do."""
    vocab, merges = trained(json.dumps(split or v.split(v.QWEN2_SPLIT)))
    fast = v.byte_level(
        *added,
        pre_tokenizer=split or v.split(v.QWEN2_SPLIT),
        normalizer=normalizer,
        ignore_merges=ignore_merges,
    )
    fast["model"] |= {"vocab": vocab, "merges": merges}
    return v.write(folder, fast=fast, settings=PLAIN)


@cache
def trained(split: str) -> tuple[dict[str, int], list[list[str]]]:
    """A vocabulary of 420 tokens with what a way of splitting allows: a larger one has more."""
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    empty = v.byte_level(pre_tokenizer=json.loads(split))
    empty["model"] |= {"vocab": {}, "merges": []}
    tokenizer = Tokenizer.from_str(json.dumps(empty))
    trainer = BpeTrainer(
        vocab_size=420, initial_alphabet=ByteLevel.alphabet(), show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(hurting_texts(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], model["merges"]


def metaspace(scheme: str) -> v.Json:
    boundary = {"replacement": "\u2581", "split": False}
    return {"type": "Metaspace", "prepend_scheme": scheme, **boundary}


# Sound files pass.


@pytest.mark.parametrize("make", [pieces, byte_level])
def test_a_sound_file_passes(tmp_path: Path, make: Callable[..., Path]) -> None:
    added = v.added(420, "<tool>"), v.added(421, "two words", special=False)
    folder = make(tmp_path / "folder", *added)
    result = checked(tmp_path, folder)
    assert result.verdict == "passed"
    record = result.details["tokens"]
    assert record["tokenizer"] == vocabulary_files(folder)[0]
    assert record["texts"] > 1000
    assert record["deviations"] == {}
    assert "round_trips" not in result.details


def test_what_the_chat_template_makes_is_compared(tmp_path: Path) -> None:
    prompt = "<s>[INST] {prompt} [/INST]"
    found = expect_tokens(pieces(tmp_path), CONFIG, [prompt])
    assert prompt in [text for text, *_ in found.texts]


# What was not mended is rejected, with the first text that shows it.


def flatten(keys: Metadata) -> None:
    keys["scores"] = [-1000.0] * N_VOCAB


def without_bytes(keys: Metadata) -> None:
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    keys["tokens"] = [f"filler {t}" if t in names else t for t in keys["tokens"]]
    keys["token_type"] = [v.NORMAL if kind == v.BYTE else kind for kind in keys["token_type"]]


def forget_added(keys: Metadata) -> None:
    kinds = (v.CONTROL, v.USER_DEFINED)
    keys["token_type"] = [v.NORMAL if kind in kinds else kind for kind in keys["token_type"]]


def no_bos(keys: Metadata) -> None:
    keys["add_bos_token"] = False  # llama.cpp adds one of its own for some pre-tokenizers


def split_as(name: str) -> Callable[[Metadata], None]:
    def change(keys: Metadata) -> None:
        assert keys["pre"] != name
        keys["pre"] = name

    return change


REJECTED = r"Its tokens are not the model's: ('.*'|\".*\") is \[.*\] for tokenizer\.\w+ and \[.*\]"


def test_flat_scores(tmp_path: Path) -> None:
    result = checked(tmp_path, pieces(tmp_path / "folder"), flatten)
    assert not result.ok
    assert re.match(REJECTED, result.verdict)
    assert "for tokenizer.model and [" in result.verdict


@pytest.mark.parametrize("setting", [UNIGRAM, NO_DUMMY_PREFIX, STRIPS_SPACES])
def test_settings_of_a_tokenizer_model(tmp_path: Path, setting: bytes) -> None:
    model = v.sentencepiece_model()
    other = pieces(tmp_path / "other", model=model + setting)
    result = checked(tmp_path, pieces(tmp_path / "plain"), expected=expect_tokens(other, CONFIG))
    assert re.match(REJECTED, result.verdict)


def test_a_vocabulary_without_bytes_aborts_at_a_text_that_is_named(tmp_path: Path) -> None:
    result = checked(tmp_path, pieces(tmp_path / "folder"), without_bytes)
    assert result.verdict.startswith("llama.cpp crashed with SIGABRT while tokenizing ")


@pytest.mark.parametrize(
    ("split", "name", "written"),
    [
        (v.split(v.LLAMA3_SPLIT), "llama-bpe", "gpt-2"),
        (v.split(v.LLAMA3_SPLIT), "llama-bpe", "qwen2"),
        (v.split(v.QWEN2_SPLIT), "qwen2", "gpt-2"),
        (v.split(v.TEKKEN_SPLIT), "tekken", "gpt-2"),
        (v.BYTE_LEVEL, "gpt-2", "llama-bpe"),
        (v.BYTE_LEVEL, "gpt-2", "qwen2"),
    ],
)
def test_another_pre_tokenizer(tmp_path: Path, split: v.Json, name: str, written: str) -> None:
    ignores = name in ("llama-bpe", "tekken")
    folder = byte_level(tmp_path / "folder", split=split, ignore_merges=ignores)

    def named(keys: Metadata) -> None:
        assert keys["pre"] == name
        no_bos(keys)

    assert checked(tmp_path, folder, named).verdict == "passed"
    result = checked(tmp_path, folder, lambda keys: keys.update(pre=written, add_bos_token=False))
    assert re.match(REJECTED, result.verdict)


@pytest.mark.parametrize("make", [pieces, byte_level])
@pytest.mark.parametrize("special", [True, False])
def test_a_forgotten_added_token(tmp_path: Path, make: Callable[..., Path], special: bool) -> None:
    folder = make(tmp_path / "folder", v.added(420, "<tool>", special=special))
    result = checked(tmp_path, folder, forget_added)
    assert "Its tokens are not the model's: " in result.verdict
    assert "<" in result.verdict


def test_a_text_without_its_first_token(tmp_path: Path) -> None:
    result = checked(
        tmp_path, pieces(tmp_path / "folder"), lambda keys: keys.update(add_bos_token=False)
    )
    assert "Its tokens are not the model's: 'Hello, world!' is [1 " in result.verdict
    assert "(5 of " in result.verdict


# The closed table.

INNER = "symbol inside a text"
NORMALIZED_TEXT = "token in normalized text"
COMPOSED: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "space only at the begin": ({}, {"normalizer": None, "pre_tokenizer": metaspace("first")}),
    "space kept single": ({}, {"normalizer": None, "pre_tokenizer": metaspace("always")}),
    "white space taken by a token": ({"lstrip": True, "rstrip": True}, {}),
    "whole words only": ({"single_word": True}, {}),
    NORMALIZED_TEXT: ({"normalized": True}, {}),
}
SHOWN = {
    "space only at the begin": "a<tool>b",
    "space kept single": " leading",
    "white space taken by a token": "a <tool> b",
    "whole words only": "a<tool>b",
    NORMALIZED_TEXT: "a<tool>b",
}


@pytest.mark.parametrize("name", COMPOSED)
def test_what_no_gguf_can_say(tmp_path: Path, name: str) -> None:
    """It is measured and rejects nothing; anything else that differs still rejects."""
    flags, changes = COMPOSED[name]
    plain = pieces(tmp_path / "plain", TOOL)
    own = fast_pieces(tmp_path / "own", {**TOOL, **flags}, **changes)
    expected = expect_tokens(own, CONFIG)
    excused = {text: names for text, _, simpler, names in expected.texts if simpler is not None}
    assert name in excused[SHOWN[name]]
    assert "The river ran quietly through the old town, past the mill and the market." not in (
        excused
    )
    result = checked(tmp_path, plain, expected=expected)
    assert result.verdict == "passed"
    found = result.details["tokens"]["deviations"]
    assert found[name] == sum(name in names for names in excused.values())
    entry = next(entry for entry in DEVIATIONS if entry.name == name)
    assert f"it {entry.lacks} ({found[name]})" in describe_tokens(result.details["tokens"])
    assert not checked(tmp_path, plain, flatten, expected=expected).ok


def test_text_that_is_nfc_must_match_though_the_tokenizer_composes(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "folder", normalizer={"type": "NFC"})
    expected = expect_tokens(folder, CONFIG)
    excused = [text for text, _, simpler, _ in expected.texts if simpler is not None]
    assert unicodedata.normalize("NFD", "이것은 한국어") in excused
    assert not [text for text in excused if unicodedata.is_normalized("NFC", text)]
    result = checked(tmp_path, folder)
    assert result.verdict == "passed"
    assert result.details["tokens"]["deviations"] == {"NFC": len(excused)}
    assert not checked(tmp_path, folder, split_as("gpt-2")).ok


def test_case_outside_ascii(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "folder", split=v.split(v.TEKKEN_SPLIT), ignore_merges=True)
    fast = json.loads((folder / "tokenizer.json").read_text())
    fast["model"]["vocab"]["\xa9\xc3"] = 420  # the last byte of \xe9, the first of \xc9
    fast["model"]["merges"].insert(0, ["\xa9", "\xc3"])
    v.write(folder, fast=fast)
    expected = expect_tokens(folder, CONFIG, ["\xe9\xc9", "\xc9\xe9\xe9"])
    excused = [text for text, _, simpler, _ in expected.texts if simpler is not None]
    assert "\xe9\xc9" in excused
    assert "\xc9\xe9\xe9" not in excused
    assert not [text for text in excused if text.isascii()]
    result = checked(tmp_path, folder, no_bos, expected=expected)
    assert result.verdict == "passed"
    assert result.details["tokens"]["deviations"] == {"case outside ASCII": len(excused)}


SYMBOLS = ("<im>", "[REF]", "[/REF]")


def test_a_symbol_inside_a_text(tmp_path: Path) -> None:
    """Mistral's tokenizer.model of versions 3 and 7 has some 20 user-defined symbols."""
    model = v.sentencepiece_model(user_defined_symbols=SYMBOLS)
    folder = pieces(tmp_path / "folder", TOOL, model=model)
    expected = expect_tokens(folder, CONFIG)
    excused = {text: names for text, _, simpler, names in expected.texts if simpler is not None}
    assert {"a<im>b", "[REF]", "a [/REF] b"} <= set(excused)
    assert all(any(symbol in text for symbol in SYMBOLS) for text in excused)
    assert {name for names in excused.values() for name in names} == {INNER}
    own = open_reference(read_source(folder, CONFIG), "tokenizer.model")
    assert own.encode("a<im>b") == processor(model).EncodeAsIds("a<im>b")
    result = checked(tmp_path, folder)
    assert result.verdict == "passed"
    assert result.details["tokens"]["deviations"] == {INNER: len(excused)}
    assert not checked(tmp_path, folder, flatten).ok

    def forget(keys: Metadata) -> None:
        keys["token_type"] = [1 if kind == v.USER_DEFINED else kind for kind in keys["token_type"]]

    assert "are not the model's" in checked(tmp_path, folder, forget).verdict


def test_symbols_of_a_raw_release(tmp_path: Path) -> None:
    raw, folder = tmp_path / "raw", tmp_path / "folder"
    folder.mkdir()
    v.write(raw)
    model = v.sentencepiece_model(user_defined_symbols=SYMBOLS)
    (raw / "tokenizer.model.v3").write_bytes(model)
    add_tokenizer_files(raw, folder)
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert [t["content"] for t in added if not t["special"]] == list(SYMBOLS)
    result = checked(tmp_path, folder)
    assert result.verdict == "passed"
    keys = keys_of(folder)
    marked = zip(keys["tokens"], keys["token_type"], strict=True)
    assert [text for text, kind in marked if kind == v.USER_DEFINED] == list(SYMBOLS)
    # Scores are those of SentencePiece still, as the converter writes them.
    assert keys["scores"][300] == processor(model).GetScore(300)


def test_a_model_beside_it_with_symbols(tmp_path: Path) -> None:
    """Its scores are used, whether or not tokenizer_config.json lists the symbols."""
    raw, folder = tmp_path / "raw", tmp_path / "folder"
    folder.mkdir()
    v.write(raw)
    model = v.sentencepiece_model(user_defined_symbols=SYMBOLS)
    (raw / "tokenizer.model").write_bytes(model)
    add_tokenizer_files(raw, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({**LLAMA, **AS_IT_IS}))
    keys = keys_of(folder)
    assert keys["scores"][300] == processor(model).GetScore(300)
    assert keys["token_type"].count(v.USER_DEFINED) == len(SYMBOLS)
    expected = expect_tokens(folder, CONFIG)
    assert expected.remarks == ()  # what is listed in the table is no contradiction
    assert checked(tmp_path, folder, expected=expected).verdict == "passed"


def test_symbols_with_spaces_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    v.write(tmp_path / "raw")
    model = v.sentencepiece_model(user_defined_symbols=("\u2581\u2581",))
    (tmp_path / "raw" / "tokenizer.model").write_bytes(model)
    with pytest.raises(TokenizerError, match="out of a text, spaces included"):
        add_tokenizer_files(tmp_path / "raw", folder)


def processor(model: bytes) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=model)


def test_an_excuse_says_what_llama_cpp_must_give_instead(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "folder", normalizer={"type": "NFC"})
    expected = expect_tokens(folder, CONFIG)
    wrong = [
        (text, ids, [*simpler, 0] if simpler is not None else None, names)
        for text, ids, simpler, names in expected.texts
    ]
    result = checked(
        tmp_path, folder, expected=ExpectedTokens(expected.file, wrong, expected.framed)
    )
    assert not result.ok


# In tests/checkpoint/converter: test_tokens.py, and with llama.cpp test_described_tokens.py.
WORD_PIECE = ("control characters as spaces", "marks that are no accents")


def test_every_entry_of_the_table_is_tested() -> None:
    assert {entry.name for entry in DEVIATIONS} == {
        *("NFC", "case outside ASCII", INNER),
        *COMPOSED,
        *WORD_PIECE,
    }


def test_nothing_is_excused_where_no_trait_is_there(tmp_path: Path) -> None:
    for make in (pieces, fast_pieces, byte_level):
        expected = expect_tokens(make(tmp_path / make.__name__, TOOL), CONFIG)
        assert all(simpler is None for _, _, simpler, _ in expected.texts)


# Several tokenizers in one folder.


def test_tokenizers_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    fast = v.piece_bpe()
    fast["model"]["merges"].reverse()
    settings = {**LLAMA, "add_bos_token": False}
    folder = v.write(tmp_path, fast=fast, model=v.sentencepiece_model(), settings=settings)
    expected = expect_tokens(folder, CONFIG)
    [remark] = expected.remarks
    assert remark.startswith("tokenizer.json and tokenizer.model contradict each other in ")
    assert re.search(r" of 1,\d\d\d texts, first in ('.*'|\".*\"): \[.*\] and \[.*\];", remark)
    assert remark.endswith("; GGUF files follow tokenizer.json.")


def test_tokenizers_that_agree_are_not(tmp_path: Path) -> None:
    folder = pieces(fast_pieces(tmp_path, TOOL), TOOL)
    assert expect_tokens(folder, CONFIG).remarks == ()


def test_another_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = fast_pieces(tmp_path)
    (folder / "tekken.json").write_text("{}")
    [remark] = expect_tokens(folder, CONFIG).remarks
    assert remark.startswith(f"tokenizer.json was converted. Beside it: {folder / 'tekken.json'}")


# What the libraries make of files.


def test_a_panic_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    folder = fast_pieces(tmp_path, normalizer=normalizer)
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.json is no .*; download it again, "
    ) as caught:
        expect_tokens(folder, CONFIG)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_tekken_is_byte_level_bpe_behind_its_special_tokens(tmp_path: Path) -> None:
    fast = v.byte_level(pre_tokenizer=v.split(v.TEKKEN_SPLIT))
    letters = _alphabet()
    spelled = [bytes([byte]) for byte in range(256)]
    merged = ["".join(pair) for pair in fast["model"]["merges"]]
    spelled += [bytes(letters[letter] for letter in token) for token in merged]
    config = {"pattern": v.TEKKEN_SPLIT, "default_num_special_tokens": 20, "version": "v3"}
    config |= {"default_vocab_size": 20 + len(spelled)}
    (tmp_path / "tekken.json").write_text(json.dumps({"config": config, "vocab": _listed(spelled)}))
    source = read_source(v.write(tmp_path, fast=fast, settings=PLAIN), CONFIG)
    tekken, same = (open_reference(source, file) for file in ("tekken.json", "tokenizer.json"))
    number = {text: 20 + i for i, text in enumerate(spelled)}
    own = {
        i: number[bytes(letters[letter] for letter in token)]
        for token, i in fast["model"]["vocab"].items()
    }
    for text in hurting_texts():
        assert tekken.encode(text) == [own[i] for i in same.encode(text)], text
    assert tekken.encode("[INST]<s>") == [3, 1]
    assert tekken.frame == Frame(before=(1,))


def _alphabet() -> dict[str, int]:
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(others)}


def _listed(spelled: list[bytes]) -> list[v.Json]:
    from base64 import b64encode

    return [{"rank": i, "token_bytes": b64encode(t).decode()} for i, t in enumerate(spelled)]


@pytest.mark.parametrize(
    "make", [pytest.param(fast_pieces, id="pieces"), pytest.param(byte_level, id="byte-level")]
)
def test_tokenizer_json_as_transformers_opens_it(tmp_path: Path, make: Callable[..., Path]) -> None:
    from transformers import AutoTokenizer

    folder = make(tmp_path, {**TOOL, "lstrip": True}, v.added(421, "<x>"))
    (folder / "tokenizer_config.json").write_text(json.dumps(PLAIN))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = open_reference(read_source(folder, CONFIG), "tokenizer.json")
    for text in hurting_texts(["<tool>", "<x>"]):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREPEND = {"type": "Prepend", "prepend": "\u2581"}
SPACES = {
    "prepend": ({"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, None),
    "first": (None, metaspace("first")),
    "always": (None, metaspace("always")),
    "never": (None, metaspace("never")),
    "none": (REPLACE, None),
}
OWN_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer")
CLASSES = (*OWN_CLASSES, "PreTrainedTokenizerFast", "TokenizersBackend", None)


@pytest.mark.parametrize("spaces", SPACES)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "mixtral"])
def test_spaces_are_those_of_transformers(tmp_path: Path, model_type: str, spaces: str) -> None:
    """Of a Llama tokenizer_config.json says how a text begins, of a Mistral tokenizer.json."""
    from transformers import AutoTokenizer

    config = {"model_type": model_type, "vocab_size": 421}
    fast = v.piece_bpe(v.added(420, "<t>", special=False))
    fast["normalizer"], fast["pre_tokenizer"] = SPACES[spaces]
    texts = ["Hello", " x", "  two", "a<s>b", "a</s> b", "<s>a<s> b", "\u2581x", "a<t>b<t> c"]
    values = (True, False, None)
    for name in CLASSES:
        every = model_type == "llama" and name in OWN_CLASSES
        for prefix, legacy in product(values, values) if every else ((True, True), (False, False)):
            said = {"tokenizer_class": name, "add_prefix_space": prefix, "legacy": legacy}
            settings = {key: value for key, value in said.items() if value is not None}
            folder = v.write(tmp_path, fast=fast, settings=settings, config__json=config)
            theirs = AutoTokenizer.from_pretrained(folder)
            ours = open_reference(read_source(folder, config), "tokenizer.json")
            for text in texts:
                right = theirs.encode(text, add_special_tokens=False)
                assert ours.encode(text) == right, (said, text)


def test_a_llamas_byte_level_file_counts(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    config = {"model_type": "llama", "vocab_size": 421}
    folder = byte_level(tmp_path, TOOL)
    v.write(folder, settings={"tokenizer_class": "LlamaTokenizer"}, config__json=config)
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = open_reference(read_source(folder, config), "tokenizer.json")
    for text in hurting_texts(["<tool>"]):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


def test_what_is_compared_with_is_what_is_converted(tmp_path: Path) -> None:
    """tokenizer.json counts most, tokenizer.model least, as in llama.cpp's converter."""
    v.write(tmp_path, model=v.sentencepiece_model(), tekken__json=v.tekken())
    assert vocabulary_files(tmp_path) == ("tekken.json", "tokenizer.model")
    assert keys_of(tmp_path)["pre"] == "tekken"
    v.write(tmp_path, fast=v.piece_bpe())
    assert vocabulary_files(tmp_path) == ("tokenizer.json", "tekken.json", "tokenizer.model")
    assert keys_of(tmp_path)["pre"] == "default"


def test_what_stands_between_added_tokens_is_encoded_alone(tmp_path: Path) -> None:
    folder = pieces(tmp_path / "legacy", v.added(420, "<tool>"))
    reference = open_reference(read_source(folder, CONFIG), "tokenizer.model")
    alone = reference.encode("world")
    assert reference.encode("<tool>world<s>world") == [420, *alone, 1, *alone]
    folder = pieces(tmp_path / "new", v.added(420, "<tool>"), legacy=False)
    reference = open_reference(read_source(folder, CONFIG), "tokenizer.model")
    assert reference.encode("world") == alone
    assert reference.encode("<tool> world") == [420, *alone]
    assert reference.traits.prefixes_first
    assert reference.simplify()("<tool>world") == [420, *alone]


def test_a_text_is_cut_at_the_longest_token_that_begins_first() -> None:
    split = splitter(
        [AddedToken("<a"), AddedToken("<a>"), AddedToken("b", lstrip=True, rstrip=True)]
    )
    assert list(split("x<a><ab \n y")) == [
        ("x", False), ("<a>", True), ("<a", True), ("b", True), ("y", False),
    ]  # fmt: skip
    assert list(split("x  b")) == [("x", False), ("b", True)]
    assert list(split("")) == []


# What is compared and how it is shown.


def test_texts_are_many_short_and_the_same_every_time() -> None:
    texts = hurting_texts(["<tool>"], ["more"])
    assert texts == hurting_texts(["<tool>"], ["more"])
    assert len(texts) == len(set(texts)) > 1000
    assert max(map(len, texts)) < 120
    scripts = {unicodedata.name(c).split()[0] for t in texts for c in t if c.isalpha()}
    assert scripts >= {
        *("LATIN", "GREEK", "CYRILLIC", "HEBREW", "ARABIC", "DEVANAGARI", "THAI", "CJK"),
        *("HANGUL", "HIRAGANA", "KATAKANA", "GEORGIAN", "ARMENIAN", "TAMIL", "ETHIOPIC"),
    }
    assert set(map(chr, range(256))) <= set(texts)
    for token in ("<tool>", "a<tool>b", "a <tool> b", "<tool><tool>"):
        assert token in texts
    assert unicodedata.normalize("NFD", "ещё этих йод її") in texts
    many = [f"<{i}>" for i in range(200)]
    for text in ("<7>", "a<7>b", "a <7> b<7><7>.<7>\n<7>1"):
        assert text in hurting_texts(many)


def test_it_takes_half_a_second_of_processor_time(tmp_path: Path) -> None:
    """For 32,000 tokens, 957 of them special; the limit leaves room for a machine that is slow.

    benchmarks/tokens.py measures it.
    """
    config = {**CONFIG, "vocab_size": 32_000}
    letters = "abcdefghijklmnopqrstuvwxyzABCDE"
    pairs = list(product(letters, letters))
    triples = list(product(letters, letters, letters))
    merges = [*pairs, *((a + b, c) for a, b, c in triples), *((a, b + c) for a, b, c in triples)]
    fast = v.piece_bpe()
    bytes_ = list(fast["model"]["vocab"])[:259]
    tokens = [*bytes_, "\u2581", *letters, *map("".join, pairs), *map("".join, triples)]
    specials = [v.added(i, f"<|special {i}|>") for i in range(len(tokens), 32_000)]
    fast["model"] |= {"vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}
    fast["added_tokens"] += specials
    folder = v.write(tmp_path / "folder", fast=fast, settings=LLAMA)
    before = _children()
    expected = expect_tokens(folder, config)
    asking = _children() - before
    assert len(expected.texts) > 4000

    def add(writer: Any) -> None:
        add_tokenizer(writer, folder, config)

    file = write_specimen(tmp_path / "model.gguf", add_vocabulary=add, n_vocab=32_000)
    spent = []
    for compared in (None, expected):
        before = _children()
        smoke(file, threads=1, tokens=compared)
        spent.append(_children() - before)
    assert asking + spent[1] - spent[0] < 2.5


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_what_is_shown_is_cut_around_the_first_difference() -> None:
    ids = list(range(100))
    assert show_ids(ids, [*ids[:50], 7]) == f"[... {' '.join(map(str, range(47, 59)))} ...]"
    assert show_ids([1, 2], [1, 3]) == "[1 2]"
    assert show_ids([], [1]) == "[]"
    assert show_text("ö\n") == r"'\xf6\n'"
    assert len(show_text("x" * 500)) == 80
