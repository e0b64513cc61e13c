"""What each kind of tokenizer becomes in GGUF, by the rules of the formats.

``test_tokenizer_parity.py`` compares the same with llama.cpp's converter.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType, GGUFWriter

from quantkit.checkpoint.tokenizer import add_tokenizer, tokenizer_files
from quantkit.checkpoint.tokenizer.fast import open_tokenizer
from quantkit.checkpoint.tokenizer.source import read_source
from quantkit.core.errors import CheckpointError, TokenizerError
from quantkit.core.profiles import load_profile
from tests.checkpoint import vocabularies as v
from tests.checkpoint.vocabularies import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

BOS_EOS = {"bos_token": "<s>", "eos_token": "</s>"}
END = "<|endoftext|>"
PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
TEMPLATE = "{{ bos_token }}{{ messages[0]['content'] }}"
KEY = "tokenizer.ggml."


def collect(folder: Path, **config: Any) -> dict[str, Any]:
    """The keys that a folder's tokenizer adds, in order."""
    writer = GGUFWriter(None, "llama")
    before = len(writer.kv_data[0])
    add_tokenizer(writer, folder, config)
    entries = list(writer.kv_data[0].items())[before:]
    for name, entry in entries:
        assert entry.type is expected_type(entry.value), name
    return {name: entry.value for name, entry in entries}


def expected_type(value: Any) -> GGUFValueType:
    by_type = {
        str: GGUFValueType.STRING,
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        list: GGUFValueType.ARRAY,
    }
    return by_type[type(value)]


def pieces(
    folder: Path, *, vocab_size: int = 420, config: v.Json | None = None, **files: Any
) -> Any:
    v.write(folder, model=v.sentencepiece_model(), **files)
    return collect(folder, vocab_size=vocab_size, **(config or {}))


def bpe(folder: Path, *more: v.Json, vocab_size: int = 420, **files: Any) -> dict[str, Any]:
    files = {"fast": v.piece_bpe(*more), **files}
    return collect(v.write(folder, **files), vocab_size=vocab_size)


def byte_level(folder: Path, *more: v.Json, vocab_size: int = 400, **files: Any) -> dict[str, Any]:
    files = {"fast": v.byte_level(*more), "settings": PLAIN, **files}
    return collect(v.write(folder, **files), vocab_size=vocab_size)


class TestSentencePiece:
    def test_keys_and_their_order(self, tmp_path: Path) -> None:
        keys = pieces(
            tmp_path,
            settings={**BOS_EOS, "add_bos_token": True, "add_prefix_space": False},
            config={"eos_token_id": 2, "bos_token_id": 1},
            chat_template__jinja=TEMPLATE,
        )
        lists = ("tokens", "scores", "token_type")
        assert [key for key in keys if key.removeprefix(KEY) in lists] == [
            KEY + "tokens",
            KEY + "scores",
            KEY + "token_type",
        ]
        assert {key: value for key, value in keys.items() if not isinstance(value, list)} == {
            "tokenizer.ggml.add_space_prefix": False,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.chat_template": TEMPLATE,
        }
        assert [key.removeprefix(KEY) for key in keys] == [
            "add_space_prefix",
            "model",
            "pre",
            "tokens",
            "scores",
            "token_type",
            "bos_token_id",
            "eos_token_id",
            "add_bos_token",
            "tokenizer.chat_template",
        ]

    def test_tokens(self, tmp_path: Path) -> None:
        keys = pieces(tmp_path)
        tokens, scores, types = (keys[KEY + n] for n in ("tokens", "scores", "token_type"))
        assert tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
        assert tokens[258] == "<0xFF>"
        assert types == [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 161]
        assert scores[:259] == [0.0] * 259
        # BPE scores fall by one for each merge.
        assert scores[259:262] == [0.0, -1.0, -2.0]
        assert len(tokens) == len(scores) == len(types) == 420

    def test_fills_up_to_vocab_size(self, tmp_path: Path) -> None:
        keys = pieces(tmp_path, vocab_size=422)
        assert keys[KEY + "tokens"][419:] == [
            keys[KEY + "tokens"][419],
            "[PAD420]",
            "[PAD421]",
        ]
        assert keys[KEY + "token_type"][419:] == [NORMAL, UNUSED, UNUSED]
        assert keys[KEY + "scores"][420:] == [-10000.0, -10000.0]

    def test_leaves_out_what_has_no_embedding(self, tmp_path: Path) -> None:
        keys = pieces(tmp_path, vocab_size=300, added_tokens__json={"<x>": 300})
        assert len(keys[KEY + "tokens"]) == len(keys[KEY + "scores"]) == 300
        assert "<x>" not in keys[KEY + "tokens"]

    def test_assumes_the_vocab_size_that_transformers_does(self, tmp_path: Path) -> None:
        keys = collect(v.write(tmp_path, model=v.sentencepiece_model()))
        assert len(keys[KEY + "tokens"]) == 32000

    def test_added_tokens(self, tmp_path: Path) -> None:
        decoder = v.decoder_entries(
            v.added(421, "<|im_start|>", special=False),  # a control token by its looks
            v.added(422, "a\u2581b", special=False),
            v.added(423, "c\u2581d", special=True),
            v.added(430, "beyond"),
        )
        keys = pieces(
            tmp_path,
            vocab_size=430,
            added_tokens__json={"x\u2581y": 420, "replaced": 422},
            settings={"added_tokens_decoder": decoder},
        )
        shown = slice(420, 425)
        assert keys[KEY + "tokens"][shown] == [
            "x\u2581y",
            "<|im_start|>",
            "a b",
            "c\u2581d",
            "[PAD424]",
        ]
        assert keys[KEY + "token_type"][shown] == [
            USER_DEFINED,
            CONTROL,
            USER_DEFINED,
            CONTROL,
            UNUSED,
        ]
        assert keys[KEY + "scores"][shown] == [*[-1000.0] * 4, -10000.0]

    @pytest.mark.parametrize(
        "text", ["<pad>", "<mask>", "<2mass>", "[@BOS@]", "<|a|>", "<\uff5ca\uff5c>", "<unused7>"]
    )
    def test_control_tokens_by_their_looks(self, tmp_path: Path, text: str) -> None:
        decoder = v.decoder_entries(v.added(420, text, special=False))
        keys = pieces(tmp_path, vocab_size=421, settings={"added_tokens_decoder": decoder})
        assert keys[KEY + "token_type"][420] == CONTROL

    @pytest.mark.parametrize("value", [True, False])
    def test_prefix_space(self, tmp_path: Path, value: bool) -> None:
        keys = pieces(tmp_path, settings={"add_prefix_space": value})
        assert next(iter(keys.items())) == (KEY + "add_space_prefix", value)

    def test_code_llama_has_its_end_of_turn(self, tmp_path: Path) -> None:
        keys = pieces(tmp_path, vocab_size=32016, settings={"add_bos_token": True})
        assert list(keys.items())[-1] == (KEY + "eot_token_id", 32010)

    def test_granite_adds_no_bos(self, tmp_path: Path) -> None:
        keys = pieces(tmp_path, vocab_size=49152, settings={"add_bos_token": False})
        assert keys[KEY + "add_bos_token"] is False
        assert "eot_token_id" not in keys


class TestPieceBpe:
    def test_tokens(self, tmp_path: Path) -> None:
        keys = bpe(tmp_path, settings={**BOS_EOS, "tokenizer_class": "PreTrainedTokenizerFast"})
        tokens, types = keys[KEY + "tokens"], keys[KEY + "token_type"]
        assert keys[KEY + "model"] == "llama"
        assert keys[KEY + "pre"] == "default"
        assert tokens == pieces(tmp_path / "model")[KEY + "tokens"]
        # <unk> is special in tokenizer.json, whether or not a setting names it.
        assert types == [CONTROL, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 161]
        merges = ["".join(pair) for pair in v.piece_bpe()["model"]["merges"]]
        assert keys[KEY + "scores"] == [
            float(-merges.index(token)) if token in merges else -1000.0 for token in tokens
        ]

    def test_class_names_special_tokens(self, tmp_path: Path) -> None:
        keys = bpe(tmp_path)  # without settings: the Llama class
        assert keys[KEY + "token_type"][:4] == [CONTROL, CONTROL, CONTROL, BYTE]

    def test_added_tokens_and_padding(self, tmp_path: Path) -> None:
        more = (
            v.added(420, "<|user|>", special=False),
            v.added(421, "<end>"),
            v.added(422, "<0x0a>"),
        )
        keys = bpe(tmp_path, *more, vocab_size=425, settings={**BOS_EOS, "pad_token": "<end>"})
        assert keys[KEY + "tokens"][420:] == [
            "<|user|>",
            "<end>",
            "<0x0a>",
            "[PAD423]",
            "[PAD424]",
        ]
        assert keys[KEY + "token_type"][420:] == [
            USER_DEFINED,
            CONTROL,
            CONTROL,
            UNUSED,
            UNUSED,
        ]
        assert keys[KEY + "scores"][420:] == [*[-1000.0] * 3, *[-10000.0] * 2]
        assert keys[KEY + "padding_token_id"] == 421

    def test_prefix_space_where_transformers_wants_the_model(self, tmp_path: Path) -> None:
        settings = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": True}
        assert bpe(tmp_path, settings=settings)[KEY + "add_space_prefix"] is True

    def test_ids_beyond_the_embeddings(self, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match=r"'<x>' with id 420, .* vocab_size = 420"):
            bpe(tmp_path, v.added(420, "<x>"))

    def test_gap_in_the_ids(self, tmp_path: Path) -> None:
        fast = v.piece_bpe()
        fast["model"]["vocab"]["far"] = 424
        with pytest.raises(TokenizerError, match="no token with the id 420"):
            bpe(tmp_path, vocab_size=430, fast=fast)


class TestByteLevel:
    def test_keys_and_their_order(self, tmp_path: Path) -> None:
        keys = byte_level(tmp_path, v.added(400, END), vocab_size=402)
        assert [key.removeprefix(KEY) for key in keys] == [
            "model",
            "pre",
            "tokens",
            "token_type",
            "merges",
            "bos_token_id",
            "eos_token_id",
        ]
        vocab = v.byte_level()["model"]["vocab"]
        assert keys[KEY + "model"] == "gpt2"
        assert keys[KEY + "tokens"] == [*sorted(vocab, key=vocab.get), END, "[PAD401]"]
        assert keys[KEY + "token_type"] == [*[NORMAL] * 400, CONTROL, UNUSED]
        assert keys[KEY + "bos_token_id"] == keys[KEY + "eos_token_id"] == 400

    def test_merges(self, tmp_path: Path) -> None:
        fast = v.byte_level()
        pairs = fast["model"]["merges"]
        keys = byte_level(tmp_path / "pairs", fast=fast, vocab_size=401)
        assert keys[KEY + "merges"] == [f"{left} {right}" for left, right in pairs]
        fast["model"]["merges"] = [f"{left} {right}" for left, right in pairs]
        assert byte_level(tmp_path / "texts", fast=fast, vocab_size=401) == keys

    def test_a_space_in_a_merge(self, tmp_path: Path) -> None:
        fast = v.byte_level()
        fast["model"]["vocab"] |= {" ": 400, " a": 401}
        fast["model"]["merges"].append([" ", "a"])
        keys = byte_level(tmp_path, fast=fast, vocab_size=403)
        assert keys[KEY + "merges"][-1] == "\u0120 a"

    def test_added_tokens(self, tmp_path: Path) -> None:
        keys = byte_level(
            tmp_path,
            v.added(400, END),
            v.added(401, "<|user|>", special=False),
            v.added(402, "a\u2581b", special=False, normalized=True),
            v.added(403, "no . yes", special=False),
            vocab_size=404,
            settings={**PLAIN, "clean_up_tokenization_spaces": True},
        )
        assert keys[KEY + "tokens"][400:] == [END, "<|user|>", "a\u2581b", "no . yes"]
        assert keys[KEY + "token_type"][400:] == [CONTROL, CONTROL, USER_DEFINED, USER_DEFINED]

    def test_settings_add_tokens(self, tmp_path: Path) -> None:
        keys = byte_level(
            tmp_path,
            vocab_size=404,
            settings={
                **PLAIN,
                "added_tokens_decoder": v.decoder_entries(v.added(400, "<x>", special=False)),
                "additional_special_tokens": ["<y>"],
                "extra_special_tokens": {"image_token": "<z>"},
            },
        )
        assert keys[KEY + "tokens"][400:] == ["<x>", END, "<y>", "<z>"]
        assert keys[KEY + "token_type"][400:] == [USER_DEFINED, CONTROL, CONTROL, CONTROL]

    @pytest.mark.parametrize(
        ("name", "steps", "normalizer", "ignore_merges"),
        [
            ("gpt-2", v.BYTE_LEVEL, None, False),
            ("gpt-2", {k: v.BYTE_LEVEL[k] for k in list(v.BYTE_LEVEL)[:3]}, None, False),
            ("smollm", v.sequence(v.DIGITS, v.BYTE_LEVEL), None, False),
            ("llama-bpe", v.split(v.LLAMA3_SPLIT), None, True),
            ("smaug-bpe", v.split(v.LLAMA3_SPLIT), None, False),
            ("qwen2", v.split(v.QWEN2_SPLIT), {"type": "NFC"}, False),
            ("qwen2", v.split(v.QWEN2_SPLIT), None, False),
            ("tekken", v.split(v.TEKKEN_SPLIT), None, True),
        ],
    )
    def test_pre_tokenizer_by_its_steps(
        self, tmp_path: Path, name: str, steps: v.Json, normalizer: v.Json, ignore_merges: bool
    ) -> None:
        fast = v.byte_level(pre_tokenizer=steps, normalizer=normalizer, ignore_merges=ignore_merges)
        assert byte_level(tmp_path, fast=fast, vocab_size=401)[KEY + "pre"] == name

    def test_pre_tokenizer_of_a_known_vocabulary(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        profile = load_profile("pretokenizers.toml")
        folder = v.write(tmp_path, fast=v.byte_level(), settings=PLAIN)
        ids = open_tokenizer(read_source(folder, {})).encode(profile["text"])
        digest = sha256(str(ids).encode()).hexdigest()
        monkeypatch.setitem(profile["sha256"], digest, "as-listed")
        assert collect(folder, vocab_size=401)[KEY + "pre"] == "as-listed"

    def test_steps_that_contradict_a_known_vocabulary(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A Llama 3 without ignore_merges, as old files have it, gives that text's ids, too."""
        profile = load_profile("pretokenizers.toml")
        fast = v.byte_level(pre_tokenizer=v.split(v.LLAMA3_SPLIT))
        folder = v.write(tmp_path / "a", fast=fast, settings=PLAIN)
        ids = open_tokenizer(read_source(folder, {})).encode(profile["text"])
        digest = sha256(str(ids).encode()).hexdigest()
        monkeypatch.setitem(profile["sha256"], digest, "llama-bpe")
        assert collect(folder, vocab_size=401)[KEY + "pre"] == "smaug-bpe"
        nfd = v.write(tmp_path / "b", fast={**fast, "normalizer": {"type": "NFD"}}, settings=PLAIN)
        with pytest.raises(TokenizerError, match="splits text in a way"):
            collect(nfd, vocab_size=401)

    @pytest.mark.parametrize(
        "parts",
        [
            {"pre_tokenizer": v.split(r"\w+|\W+")},
            {"pre_tokenizer": v.split(v.QWEN2_SPLIT), "ignore_merges": True},
            {"pre_tokenizer": v.sequence(v.BYTE_LEVEL, v.DIGITS)},
            {"pre_tokenizer": v.sequence({**v.BYTE_LEVEL, "add_prefix_space": True})},
            {"normalizer": {"type": "Lowercase"}},
            {"pre_tokenizer": None},
        ],
    )
    def test_unknown_pre_tokenizer(self, tmp_path: Path, parts: Any) -> None:
        with pytest.raises(TokenizerError, match=r"tokenizer\.json splits text in a way"):
            byte_level(tmp_path, fast=v.byte_level(**parts), vocab_size=401)

    def test_settings_decide_on_the_prefix_space(self, tmp_path: Path) -> None:
        fast = v.byte_level(pre_tokenizer={**v.BYTE_LEVEL, "add_prefix_space": True})
        keys = byte_level(tmp_path, fast=fast, vocab_size=401)
        assert keys[KEY + "pre"] == "gpt-2"
        with pytest.raises(TokenizerError, match="splits text"):
            byte_level(
                tmp_path, fast=fast, vocab_size=401, settings={**PLAIN, "add_prefix_space": True}
            )

    def test_ids_beyond_the_embeddings(self, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match=r"id 400, .* vocab_size = 400"):
            byte_level(tmp_path, v.added(400, END))

    @pytest.mark.parametrize(
        ("settings", "before", "after"),
        [
            ({"tokenizer_class": "PreTrainedTokenizerFast"}, [], []),
            ({"tokenizer_class": "LlamaTokenizer", "add_eos_token": True}, [], []),
            ({"tokenizer_class": "CodeLlamaTokenizer", "add_eos_token": True}, ["<s>"], []),
            ({"tokenizer_class": "CodeLlamaTokenizer", "add_bos_token": False}, ["<s>"], []),
            ({"tokenizer_class": "CodeLlamaTokenizer", "bos_token": None}, [], []),
            ({}, [], []),
        ],
    )
    def test_only_code_llama_surrounds_texts(
        self, tmp_path: Path, settings: v.Json, before: list[str], after: list[str]
    ) -> None:
        # tokenizer.json says otherwise, and is not heard.
        more = [v.added(400, "<s>"), v.added(401, "</s>")]
        folder = v.write(tmp_path, fast=v.byte_level(*more), settings=settings or None)
        tokenizer = open_tokenizer(read_source(folder, {"model_type": "llama"}))
        texts = tokenizer.texts_by_id()
        assert [texts[i] for i in tokenizer.encode("a")] == [*before, "a", *after]


class TestSpecialTokens:
    @pytest.mark.parametrize("entry", ["</s>", {"content": "</s>", "lstrip": False}])
    def test_ids_by_text(self, tmp_path: Path, entry: Any) -> None:
        settings = {"eos_token": entry, "pad_token": None, "unk_token": "<not there>"}
        keys = pieces(
            tmp_path,
            fast=v.piece_bpe(),
            settings=settings,
            config={"eos_token_id": 7, "sep_token_id": 8},
        )
        ids = {k: value for k, value in keys.items() if k.endswith("_id")}
        assert ids == {KEY + "eos_token_id": 2, KEY + "seperator_token_id": 8}

    def test_ids_of_config(self, tmp_path: Path) -> None:
        config = {
            "bos_token_id": 1,
            "eos_token_id": [2, 3],
            "pad_token_id": 420,
            "unk_token_id": None,
            "text_config": {"unk_token_id": 0, "bos_token_id": 9},
        }
        keys = pieces(tmp_path, config=config)
        ids = {k: value for k, value in keys.items() if k.endswith("_id")}
        assert ids == {KEY + "bos_token_id": 1, KEY + "unknown_token_id": 0}

    @pytest.mark.parametrize("token_id", [-1, -(2**31), 420, 2**32])
    @pytest.mark.parametrize("kind", ["bos", "eos", "pad", "sep", "unk"])
    def test_an_id_of_no_token_is_none(self, tmp_path: Path, kind: str, token_id: int) -> None:
        """LLaMA's first configs say pad_token_id = -1, which transformers takes as none."""
        keys = pieces(tmp_path, config={f"{kind}_token_id": token_id})
        assert not [key for key in keys if key.endswith("_id")]

    @pytest.mark.parametrize("token_id", [-1, 2**32])
    def test_an_id_of_no_token_in_a_bpe(self, tmp_path: Path, token_id: int) -> None:
        keys = bpe(tmp_path, config={"pad_token_id": token_id})
        assert not [key for key in keys if key.endswith("_id")]

    @pytest.mark.parametrize(
        ("post_processor", "settings", "flags"),
        [
            (None, BOS_EOS, {"bos": False}),
            (
                None,
                {**BOS_EOS, "add_eos_token": True, "add_sep_token": "yes"},
                {"bos": False, "eos": False},
            ),
            ({**v.BYTE_LEVEL}, {**BOS_EOS, "add_bos_token": True}, {"bos": False, "eos": False}),
            (v.template(["<s>"]), {**BOS_EOS, "add_bos_token": False}, {"bos": True}),
            (v.template(["<s>"], ["</s>"]), BOS_EOS, {"bos": True, "eos": True}),
            (v.template(["<unk>"]), {**BOS_EOS, "cls_token": "</s>"}, {"bos": True}),
            (v.template(["<s>"], between=["</s>"]), BOS_EOS, {"bos": True, "sep": True}),
            (v.template(["<s>"], between=["<s>"]), BOS_EOS, {"bos": True, "sep": False}),
            (
                v.template(["<s>"], ["</s>"], ["</s>"]),  # it ends the first text
                BOS_EOS,
                {"bos": True, "eos": True, "sep": False},
            ),
            (
                v.template(["<s>"], ["</s>"], ["</s>", "</s>"]),
                BOS_EOS,
                {"bos": True, "eos": True, "sep": True},
            ),
            (
                {"type": "Sequence", "processors": [{**v.BYTE_LEVEL}, v.template(["<s>"])]},
                BOS_EOS,
                {"bos": True, "eos": False},
            ),
        ],
    )
    def test_what_llama_cpp_adds(
        self, tmp_path: Path, post_processor: v.Json, settings: v.Json, flags: dict[str, bool]
    ) -> None:
        keys = pieces(tmp_path, fast=v.piece_bpe(post_processor=post_processor), settings=settings)
        assert {
            name.removeprefix(KEY).split("_")[1]: value
            for name, value in keys.items()
            if name.startswith(KEY + "add_")
        } == flags

    def test_an_end_that_the_settings_do_not_name(self, tmp_path: Path) -> None:
        fast = v.piece_bpe(post_processor=v.template(["<s>"], ["<unk>"]))
        keys = pieces(tmp_path, fast=fast, settings=BOS_EOS)
        assert keys[KEY + "eos_token_id"] == 0
        assert keys[KEY + "eot_token_id"] == 2

    def test_normalizer(self, tmp_path: Path) -> None:
        bert = {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": False,
        }
        # transformers has a Llama's tokenizer normalize nothing, whatever tokenizer.json says.
        keys = pieces(
            tmp_path,
            fast={**v.piece_bpe(), "normalizer": bert},
            settings={"tokenizer_class": "LlamaTokenizer"},
            config={"model_type": "llama"},
        )
        assert keys[KEY + "normalizer.lowercase"] is False
        assert KEY + "normalizer.strip_accents" not in keys


class TestChatTemplates:
    @pytest.mark.parametrize(
        "files",
        [
            {"settings": {**BOS_EOS, "chat_template": "no"}, "chat_template__jinja": TEMPLATE},
            {"settings": {"chat_template": None, **BOS_EOS}, "chat_template__jinja": TEMPLATE},
            {"chat_template__jinja": TEMPLATE},
            {"settings": BOS_EOS, "chat_template__jinja": TEMPLATE, "chat_template__json": {}},
            {"settings": BOS_EOS, "chat_template__json": {"chat_template": TEMPLATE}},
            {"settings": {"chat_template": [{"name": "default", "template": TEMPLATE}]}},
        ],
    )
    def test_one(self, tmp_path: Path, files: Any) -> None:
        assert templates(pieces(tmp_path, **files)) == {"tokenizer.chat_template": TEMPLATE}

    @pytest.mark.parametrize(
        "files",
        [
            {"settings": {"chat_template": 7}},
            {"settings": {"chat_template": ""}},
        ],
    )
    def test_none(self, tmp_path: Path, files: Any) -> None:
        assert templates(pieces(tmp_path, **files)) == {}

    def test_several(self, tmp_path: Path) -> None:
        listed = [
            {"name": "tool use", "template": "tools"},
            {"name": "default", "template": TEMPLATE},
            {"name": "rag", "template": "documents"},
        ]
        keys = pieces(tmp_path, settings={"chat_template": listed})
        assert list(templates(keys).items()) == [
            ("tokenizer.chat_template.tool_use", "tools"),
            ("tokenizer.chat_template.rag", "documents"),
            ("tokenizer.chat_templates", ["tool_use", "rag"]),
            ("tokenizer.chat_template", TEMPLATE),
        ]

    def test_files(self, tmp_path: Path) -> None:
        more = tmp_path / "additional_chat_templates"
        more.mkdir()
        for name in ("b", "a", "c"):
            (more / f"{name}.jinja").write_text(name.upper())
        keys = pieces(tmp_path, settings=BOS_EOS, chat_template__jinja=TEMPLATE)
        assert list(templates(keys).items()) == [
            ("tokenizer.chat_template.a", "A"),
            ("tokenizer.chat_template.b", "B"),
            ("tokenizer.chat_template.c", "C"),
            ("tokenizer.chat_templates", ["a", "b", "c"]),
            ("tokenizer.chat_template", TEMPLATE),
        ]

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
        with pytest.raises(TokenizerError, match=r"chat_template\.jinja cannot be read"):
            pieces(tmp_path, settings=BOS_EOS)


def templates(keys: dict[str, Any]) -> dict[str, Any]:
    return {k: value for k, value in keys.items() if k.startswith("tokenizer.chat")}


class TestErrors:
    @pytest.mark.parametrize("files", [{}, {"vocab__json": {}, "merges__txt": ""}])
    def test_no_tokenizer(self, tmp_path: Path, files: Any) -> None:
        with pytest.raises(
            TokenizerError, match=r"looked for tokenizer\.model, tokenizer\.json, tekken\.json;"
        ):
            collect(v.write(tmp_path, **files))

    @pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "WordLevel"])
    def test_kind(self, tmp_path: Path, kind: str) -> None:
        with pytest.raises(TokenizerError, match=f"is a {kind} tokenizer"):
            collect(v.write(tmp_path, fast={"model": {"type": kind}}))

    @pytest.mark.parametrize("content", [b"", b"not a model", v.sentencepiece_model()[:100]])
    def test_tokenizer_model(self, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(TokenizerError, match=r"tokenizer\.model is not a SentencePiece model"):
            collect(v.write(tmp_path, model=content))

    @pytest.mark.parametrize(
        "name",
        [
            "tokenizer.json",
            "tokenizer_config.json",
            "added_tokens.json",
            "special_tokens_map.json",
            "chat_template.json",
        ],
    )
    def test_not_json(self, tmp_path: Path, name: str) -> None:
        v.write(tmp_path, model=v.sentencepiece_model(), settings=BOS_EOS)
        (tmp_path / name).write_text('{"a": ')
        with pytest.raises(CheckpointError, match=f"{name} is not JSON"):
            collect(tmp_path)

    @pytest.mark.parametrize(
        ("damage", "fault"),
        [
            ({"model": []}, r"Expected `object`, got `array` - at `\$.model`"),
            ({"normalizer": []}, r"got `array` - at `\$.normalizer`"),
            ({"added_tokens": [{"id": 1}]}, r"field `content` - at `\$.added_tokens\[0\]`"),
            ({"added_tokens": {"a": 1}}, r"got `object` - at `\$.added_tokens`"),
            ({"post_processor": {"processors": 1}}, r"\$.post_processor.processors`"),
            ({"post_processor": {"single": [1, 2]}}, r"\$.post_processor.single\[0\]`"),
            ({"post_processor": {"pair": [{"Sequence": 1}]}}, r"\$.post_processor.pair\[0\]"),
        ],
    )
    def test_damaged_tokenizer_json(self, tmp_path: Path, damage: Any, fault: str) -> None:
        for model in (None, v.sentencepiece_model()):
            v.write(tmp_path, model=model, fast={**v.piece_bpe(), **damage})
            with pytest.raises(
                TokenizerError, match=f"tokenizer.json is not laid out as expected .*{fault}"
            ):
                collect(tmp_path)

    @pytest.mark.parametrize(
        ("decoder", "fault"),
        [
            ([], "is not laid out as expected .*Expected `object`"),
            ({"x": {"content": "a"}}, "has an added token with the id 'x'"),
            ({"3": "a"}, "is not laid out as expected .*Expected `object`, got `str`"),
        ],
    )
    def test_damaged_settings(self, tmp_path: Path, decoder: Any, fault: str) -> None:
        with pytest.raises(TokenizerError, match=f"tokenizer_config.json {fault}"):
            pieces(tmp_path, settings={"added_tokens_decoder": decoder})

    def test_damaged_added_tokens(self, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match=r"added_tokens\.json is not laid out .*int` >= 0"):
            pieces(tmp_path, added_tokens__json={"a": -1})

    def test_merges_without_their_tokens(self, tmp_path: Path) -> None:
        fast = v.byte_level()
        fast["model"]["merges"] = [["not", "there"]]
        with pytest.raises(TokenizerError, match=r"no tokenizer that the tokenizers package reads"):
            byte_level(tmp_path, fast=fast)

    @pytest.mark.parametrize("size", [0, -1, "32000", 1.5, True])
    def test_vocab_size(self, tmp_path: Path, size: Any) -> None:
        v.write(tmp_path, model=v.sentencepiece_model())
        with pytest.raises(TokenizerError, match="whole number above 0"):
            collect(tmp_path, vocab_size=size)


def test_files_for_the_manifest(tmp_path: Path) -> None:
    assert tokenizer_files(tmp_path) == ()
    v.write(
        tmp_path, model=b"", settings={}, chat_template__jinja="", config__json={}, merges__txt=""
    )
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").touch()
    assert [file.relative_to(tmp_path).as_posix() for file in tokenizer_files(tmp_path)] == [
        "tokenizer.model",
        "tokenizer_config.json",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
    ]


def test_nothing_depends_on_the_order_of_sets(tmp_path: Path) -> None:
    settings = {"chat_template": [{"name": n, "template": n} for n in "fbeadc"]}
    keys = pieces(tmp_path, settings=settings)
    assert keys["tokenizer.chat_templates"] == list("fbeadc")
    assert json.dumps(keys) == json.dumps(pieces(tmp_path, settings=settings))
