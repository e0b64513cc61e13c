"""What surrounds every text is what the checkpoint's own tokenizer puts there."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter

from quantkit.checkpoint.tokenizer import add_tokenizer
from quantkit.checkpoint.tokenizer.frame import frame_remarks
from quantkit.checkpoint.tokenizer.reference import open_reference
from quantkit.checkpoint.tokenizer.source import read_source, vocabulary_files
from quantkit.core.errors import TokenizerError
from tests.checkpoint import vocabularies as v
from tests.checkpoint.frames import frame_of, said_frame
from tests.encoded import encode_text

END = "<|end|>"
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
IM_ENDS = {"eos_token": "<im>"}
CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer", "PreTrainedTokenizerFast")
TEMPLATES = {
    "none": None,
    "bos": v.template(["<s>"]),
    "both": v.template(["<s>"], ["</s>"]),
    "eos": v.template([], ["</s>"]),
}
FLAGS: tuple[v.Json, ...] = (
    {},
    {"add_bos_token": True, "add_eos_token": True},
    {"add_bos_token": False},
)


def settings_of(name: str | None, flags: v.Json, **named: Any) -> v.Json:
    return {**NAMES, **flags, **({"tokenizer_class": name} if name else {}), **named}


def byte_level(post_processor: v.Json | None = None, **more: Any) -> v.Json:
    tokens = [v.added(400 + i, text) for i, text in enumerate(("<s>", "</s>", END))]
    if post_processor:
        post_processor = json.loads(json.dumps(post_processor))
        for token in post_processor["special_tokens"].values():
            token["ids"] = [{"<s>": 400, "</s>": 401}[token["id"]]]
    return v.byte_level(*tokens, post_processor=post_processor, **more)


def check(folder: Path, config: v.Json) -> v.Json:
    """The keys that are written for a folder: they, and what they are compared with, are right."""
    writer = GGUFWriter(None, "llama")
    add_tokenizer(writer, folder, config)
    keys = {name: entry.value for name, entry in writer.kv_data[0].items()}
    right = frame_of(folder)
    source = read_source(folder, config)
    frame = open_reference(source, vocabulary_files(folder)[0]).frame
    assert (list(frame.before), list(frame.after)) == right
    assert said_frame(keys) == right
    return keys


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("model_type", "names"), [("llama", (*CLASSES, None)), ("mistral", CLASSES[:2])]
)
def test_tokenizer_json(
    tmp_path: Path, model_type: str, names: tuple[str | None, ...], template: str
) -> None:
    config = {"model_type": model_type, "vocab_size": 440}
    for number, (name, flags) in enumerate(product(names, FLAGS[1:])):
        fast = v.piece_bpe(post_processor=TEMPLATES[template])
        folder = tmp_path / str(number)
        v.write(folder, fast=fast, settings=settings_of(name, flags), config__json=config)
        check(folder, config)


@pytest.mark.parametrize("template", ["none", "both"])
def test_byte_level(tmp_path: Path, template: str) -> None:
    config = {"model_type": "llama", "vocab_size": 420}
    names = ("LlamaTokenizerFast", "GPT2Tokenizer", "GPTNeoXTokenizerFast", None)
    for number, (name, flags) in enumerate(product(names, FLAGS[1:])):
        folder = tmp_path / str(number)
        fast = byte_level(TEMPLATES[template])
        v.write(folder, fast=fast, settings=settings_of(name, flags), config__json=config)
        check(folder, config)


@pytest.mark.parametrize(("model_type", "name"), [("llama", "LlamaTokenizer"), ("mixtral", None)])
def test_tokenizer_model(tmp_path: Path, model_type: str, name: str | None) -> None:
    config = {"model_type": model_type, "vocab_size": 420, "eos_token_id": 2}
    maps: tuple[v.Json, ...] = ({}, {"special_tokens_map__json": {"bos_token": "</s>"}})
    others: tuple[v.Json, ...] = ({}, {"bos_token": None}, {"bos_token": ""})
    for number, (flags, files, other) in enumerate(product(FLAGS[1:], maps, others)):
        folder = tmp_path / str(number)
        settings = settings_of(name, flags, **other)
        v.write(
            folder, model=v.sentencepiece_model(), settings=settings, config__json=config, **files
        )
        check(folder, config)


def test_a_tokenizer_model_of_which_nothing_is_said(tmp_path: Path) -> None:
    """As in transformers 4, which alone leaves such folders: BOS; 5 puts nothing there."""
    config = {"model_type": "llama", "vocab_size": 420}
    v.write(tmp_path, model=v.sentencepiece_model(), settings=NAMES, config__json=config)
    assert frame_of(tmp_path) == ([], [])
    writer = GGUFWriter(None, "llama")
    add_tokenizer(writer, tmp_path, config)
    keys = {name: entry.value for name, entry in writer.kv_data[0].items()}
    source = read_source(tmp_path, config)
    frame = open_reference(source, vocabulary_files(tmp_path)[0]).frame
    assert said_frame(keys) == ([1], []) == (list(frame.before), list(frame.after))
    [remark] = frame_remarks(frame, source)
    assert "transformers 5 then puts none" in remark


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("fast", [True, False])
def test_calibration_text_begins_alike(tmp_path: Path, fast: bool, adds: bool) -> None:
    files: v.Json = {"model": v.sentencepiece_model()}
    if fast:
        files = {"fast": v.piece_bpe(post_processor=TEMPLATES["bos" if adds else "none"])}
    flag = adds != fast  # beside a tokenizer.json it says nothing
    config = {"model_type": "llama", "vocab_size": 420}
    v.write(tmp_path, settings=settings_of(None, {"add_bos_token": flag}), **files)
    assert encode_text(tmp_path, config, "a").bos == (1 if adds else None)


@pytest.mark.parametrize("bos", ["</s>", "<im>", None])
def test_bos_renamed(tmp_path: Path, bos: str | None) -> None:
    """Another token is called BOS than the one that the post-processor adds."""
    config = {"model_type": "llama", "vocab_size": 421, "eos_token_id": 2}
    fast = v.piece_bpe(v.added(420, "<im>"), post_processor=TEMPLATES["bos"])
    settings = settings_of("LlamaTokenizer", {}, bos_token=bos)
    v.write(tmp_path, fast=fast, settings=settings, config__json=config)
    assert check(tmp_path, config)["tokenizer.ggml.bos_token_id"] == 1


def test_another_end_than_that_of_generation(tmp_path: Path) -> None:
    """The token that ends every text is EOS to llama.cpp; generation still ends at the other."""
    config = {"model_type": "llama", "vocab_size": 421, "eos_token_id": 420}
    fast = v.piece_bpe(v.added(420, "<im>"), post_processor=TEMPLATES["both"])
    settings = settings_of("LlamaTokenizer", IM_ENDS)
    v.write(tmp_path, fast=fast, settings=settings, config__json=config)
    keys = check(tmp_path, config)
    assert keys["tokenizer.ggml.eos_token_id"] == 2
    assert keys["tokenizer.ggml.eot_token_id"] == 420


def test_generation_ends_as_before_where_no_text_does(tmp_path: Path) -> None:
    config = {"model_type": "llama", "vocab_size": 421, "eos_token_id": 420}
    fast = v.piece_bpe(v.added(420, "<im>"), post_processor=TEMPLATES["bos"])
    settings = settings_of("LlamaTokenizer", {"add_eos_token": True, **IM_ENDS})
    v.write(tmp_path, fast=fast, settings=settings, config__json=config)
    keys = check(tmp_path, config)
    assert keys["tokenizer.ggml.eos_token_id"] == 420
    assert "tokenizer.ggml.eot_token_id" not in keys


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (v.template(["<s>", "<unk>"]), r"puts 2 tokens before every text \(1, 0\)"),
        (v.template([], ["</s>", "</s>"]), r"puts 2 tokens after every text \(2, 2\)"),
    ],
)
def test_more_than_llama_cpp_can(tmp_path: Path, template: v.Json, says: str) -> None:
    config = {"model_type": "llama", "vocab_size": 420}
    v.write(tmp_path, fast=v.piece_bpe(post_processor=template), settings=settings_of(None, {}))
    with pytest.raises(TokenizerError, match=says):
        add_tokenizer(GGUFWriter(None, "llama"), tmp_path, config)


def test_a_token_without_a_row(tmp_path: Path) -> None:
    config = {"model_type": "llama", "vocab_size": 420}
    template = v.template(["<s>"])
    template["special_tokens"]["<s>"]["ids"] = [420]
    v.write(tmp_path, fast=v.piece_bpe(post_processor=template), settings=settings_of(None, {}))
    with pytest.raises(TokenizerError, match=r"token 420 before every text, .*size = 420"):
        add_tokenizer(GGUFWriter(None, "llama"), tmp_path, config)


def test_a_token_of_no_vocabulary(tmp_path: Path) -> None:
    settings = settings_of(None, {"add_bos_token": True, "bos_token": "<im>"})
    v.write(tmp_path, model=v.sentencepiece_model(), settings=settings)
    with pytest.raises(TokenizerError, match=r"puts '<im>' around every text \(bos_token\)"):
        add_tokenizer(GGUFWriter(None, "llama"), tmp_path, {"vocab_size": 420})


class TestInvented:
    """Special tokens that no file has a row for are none."""

    @pytest.mark.parametrize("vocab_size", [403, 420])
    @pytest.mark.parametrize("settings", [None, {"tokenizer_class": "LlamaTokenizerFast"}])
    def test_by_a_class(self, tmp_path: Path, vocab_size: int, settings: v.Json | None) -> None:
        from transformers import AutoTokenizer

        config = {"model_type": "llama", "vocab_size": vocab_size}
        v.write(tmp_path, fast=byte_level(), settings=settings, config__json=config)
        assert "<unk>" not in AutoTokenizer.from_pretrained(tmp_path).get_vocab()
        tokens = check(tmp_path, config)["tokenizer.ggml.tokens"]
        assert "<unk>" not in tokens
        assert len(tokens) == vocab_size

    @pytest.mark.parametrize(("vocab_size", "there"), [(420, False), (421, True)])
    def test_by_the_settings(self, tmp_path: Path, vocab_size: int, there: bool) -> None:
        config = {"model_type": "llama", "vocab_size": vocab_size}
        settings = settings_of("LlamaTokenizer", {"pad_token": "<pad>"})
        v.write(tmp_path, fast=v.piece_bpe(), settings=settings, config__json=config)
        assert ("<pad>" in check(tmp_path, config)["tokenizer.ggml.tokens"]) is there
        encode = open_reference(read_source(tmp_path, config), "tokenizer.json").encode
        assert (encode("<pad>") == [420]) is there


@pytest.mark.parametrize(
    ("flags", "template", "says"),
    [
        ({}, "bos", []),
        ({"add_bos_token": True, "add_eos_token": False}, "bos", []),
        ({"add_bos_token": False}, "bos", ["a BOS token before a text, .*add_bos_token = false"]),
        ({"add_bos_token": True}, "none", ["no BOS token before a text, .*add_bos_token = true"]),
        ({"add_eos_token": True}, "bos", ["no EOS token behind a text, .*add_eos_token = true"]),
        ({}, None, ["BOS token is put before a text, .*does not say add_bos_token"]),
        ({"add_bos_token": True}, None, []),
    ],
)
def test_remarks(tmp_path: Path, flags: v.Json, template: str | None, says: list[str]) -> None:
    """Older readers go by the settings, so a build names where they contradict the tokenizer."""
    import re

    files: v.Json = {"model": v.sentencepiece_model()}
    if template:
        files = {"fast": v.piece_bpe(post_processor=TEMPLATES[template])}
    v.write(tmp_path, settings=settings_of("LlamaTokenizer", flags), **files)
    source = read_source(tmp_path, {"model_type": "llama", "vocab_size": 420})
    frame = open_reference(source, vocabulary_files(tmp_path)[0]).frame
    found = frame_remarks(frame, source)
    assert len(found) == len(says)
    assert all(re.search(pattern, text) for pattern, text in zip(says, found, strict=True))
