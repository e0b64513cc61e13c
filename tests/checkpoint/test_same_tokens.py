"""llama.cpp gives every text the tokens that the checkpoint's own tokenizer gives it, or none."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.core.errors import TokenizerError
from tests.checkpoint import vocabularies as v
from tests.checkpoint.llama_tokens import TEXTS, differing, llama_tokenizer, write_vocabulary

TINY = Path(__file__).parents[1] / "checkpoints" / "tiny-mixtral"
TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")
BOUNDARY = "\u2581"
LLAMA = {"tokenizer_class": "LlamaTokenizer"}
PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": BOUNDARY}
PREPEND = {"type": "Prepend", "prepend": BOUNDARY}


def metaspace(scheme: str, *, split: bool = False) -> v.Json:
    return {
        "type": "Metaspace",
        "replacement": BOUNDARY,
        "prepend_scheme": scheme,
        "split": split,
    }


def write(
    folder: Path, *, vocab_size: int = 420, model_type: str = "mixtral", **files: Any
) -> Path:
    config = {"model_type": model_type, "vocab_size": vocab_size}
    return v.write(folder, config__json=config, **files)


def tiny(folder: Path, *, without: str = "", model_type: str = "mixtral", **settings: Any) -> Path:
    """tiny-mixtral's tokenizer without one of its files, with other settings."""
    folder.mkdir()
    for name in TOKENIZER_FILES:
        if name != without:
            shutil.copyfile(TINY / name, folder / name)
    for name, change in (
        ("config.json", {"model_type": model_type}),
        ("tokenizer_config.json", settings),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **change}))
    return folder


def transformers_encode(folder: Path) -> Callable[[str], list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def fast_encode(folder: Path) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def piece_encode(model: bytes) -> Callable[[str], list[int]]:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=model).EncodeAsIds


def with_steps(normalizer: v.Json | None, pre_tokenizer: v.Json | None, **model: Any) -> v.Json:
    """The small vocabulary with other steps before it merges."""
    fast = v.piece_bpe()
    fast["model"] |= model
    return {**fast, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}


class TestMerges:
    @pytest.mark.parametrize("model_type", ["mixtral", "mistral"])
    def test_saved_by_transformers(self, tmp_path: Path, model_type: str) -> None:
        from transformers import AutoTokenizer

        original = tiny(tmp_path / "original", model_type=model_type)
        saved = tmp_path / "saved"
        AutoTokenizer.from_pretrained(original).save_pretrained(saved)
        shutil.copyfile(original / "config.json", saved / "config.json")
        assert not (saved / "tokenizer.model").exists()
        assert differing(saved, transformers_encode(saved)) == []

    def test_special_tokens_stand_alone(self, tmp_path: Path) -> None:
        folder = tiny(tmp_path / "tiny", without="tokenizer.model")
        texts = [
            f"{a}{token}{b}"
            for token in ("<s>", "</s>", "<unk>")
            for a in ("", "x", "x ")
            for b in ("", "y", " y", "\n", "<s>")
        ]
        assert differing(folder, transformers_encode(folder), texts) == []

    def test_special_tokens_that_no_setting_names(self, tmp_path: Path) -> None:
        # Mistral's [INST] is listed in tokenizer.json only, with an id of the trained vocabulary.
        fast = v.piece_bpe()
        text = next(t for t in fast["model"]["vocab"] if len(t) > 3 and t.isascii() and t.isalpha())
        fast["added_tokens"].append(v.added(fast["model"]["vocab"][text], text))
        folder = write(tmp_path, fast=fast)
        assert differing(folder, fast_encode(folder), [f"x{text}y {text}", text]) == []

    def test_any_merges(self, tmp_path: Path) -> None:
        """Made-up merges, complete or not, in any order: the same tokens or a refusal."""
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        accepted = refused = 0
        for seed in range(60):
            rng = random.Random(seed)
            tokens = ["a", "b", BOUNDARY]
            merges: list[list[str]] = []
            for _ in range(12):
                pair = [rng.choice(tokens), rng.choice(tokens)]
                if pair not in merges and len("".join(pair)) < 7:
                    merges.append(pair)
                    tokens += ["".join(pair)] if "".join(pair) not in tokens else []
            if seed % 3:
                more = [[t[:cut], t[cut:]] for t in tokens for cut in range(1, len(t))]
                merges += [m for m in more if m not in merges and set(m) <= set(tokens)]
                rng.shuffle(merges)
            names = ["<unk>", "<s>", "</s>", *bytes_, *tokens]
            fast = with_steps(
                REPLACE, None, vocab={text: i for i, text in enumerate(names)}, merges=merges
            )
            folder = write(tmp_path / str(seed), fast=fast, vocab_size=len(names))
            texts = ["".join(rng.choices("ab ", k=rng.randrange(1, 16))) for _ in range(100)]
            encode = fast_encode(folder)
            try:
                assert differing(folder, encode, texts) == [], merges
                accepted += 1
            except TokenizerError as error:
                # What is refused is a token that llama.cpp would make and the merges do not.
                token = str(error).split("'")[1]
                assert len(encode(token.replace(BOUNDARY, " "))) > 1
                refused += 1
        assert accepted > 20
        assert refused > 5

    def test_a_missing_merge_is_named(self, tmp_path: Path) -> None:
        fast = v.piece_bpe()
        piece = next(t for t in fast["model"]["vocab"] if len(t) == 2 and t.isalpha())
        fast["model"]["merges"].remove([piece[0], piece[1]])
        with pytest.raises(TokenizerError, match=f"has the token '{piece}' but no merge"):
            write_vocabulary(write(tmp_path, fast=fast))

    def test_ignored_merges(self, tmp_path: Path) -> None:
        same = write(tmp_path / "same", fast=with_steps(REPLACE, None, ignore_merges=True))
        assert differing(same, fast_encode(same), TEXTS) == ["<0x0A>"]  # alone, which no text is
        fast = with_steps(REPLACE, None, ignore_merges=True)
        fast["model"]["vocab"]["unreached"] = 420
        other = write(tmp_path / "other", fast=fast, vocab_size=421)
        with pytest.raises(TokenizerError, match=r"'unreached' one token .*ignore_merges"):
            write_vocabulary(other)


class TestSpaces:
    @pytest.mark.parametrize(
        ("normalizer", "pre_tokenizer"),
        [
            ({"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, None),
            ({"type": "Sequence", "normalizers": [REPLACE, PREPEND]}, None),
            (REPLACE, None),
            (None, metaspace("never")),
            (
                REPLACE,
                {
                    "type": "Split",
                    "pattern": {"String": " "},
                    "behavior": "MergedWithPrevious",
                    "invert": False,
                },
            ),
        ],
    )
    def test_steps(self, tmp_path: Path, normalizer: v.Json, pre_tokenizer: v.Json) -> None:
        folder = write(tmp_path, fast=with_steps(normalizer, pre_tokenizer))
        assert differing(folder, fast_encode(folder)) == []

    @pytest.mark.parametrize("scheme", ["always", "first"])
    def test_no_second_space(self, tmp_path: Path, scheme: str) -> None:
        # llama.cpp puts a space in front of a space, too, which no key turns off.
        folder = write(tmp_path, fast=with_steps(None, metaspace(scheme)))
        differ = differing(folder, fast_encode(folder))
        assert differ
        assert all(text.startswith((" ", BOUNDARY)) for text in differ)

    @pytest.mark.parametrize("model_type", ["llama", "mixtral"])
    @pytest.mark.parametrize("value", [True, False, None])
    def test_settings(self, tmp_path: Path, model_type: str, value: bool | None) -> None:
        """Of a Llama the settings say whether a text begins with a space; else tokenizer.json."""
        folder = tiny(
            tmp_path / "x", model_type=model_type, without="tokenizer.model", add_prefix_space=value
        )
        texts = [text for text in TEXTS if text[0] not in (" ", BOUNDARY)]
        assert differing(folder, transformers_encode(folder), texts) == []

    @pytest.mark.parametrize("value", [True, False])
    def test_a_model_beside_it(self, tmp_path: Path, value: bool) -> None:
        folder = tiny(tmp_path / "x", add_prefix_space=value)
        assert differing(folder, transformers_encode(folder)) == []

    @pytest.mark.parametrize(
        ("fast", "says"),
        [
            (with_steps({"type": "NFKC"}, metaspace("never")), r"normalizes text \(NFKC\)"),
            (with_steps({"type": "Lowercase"}, metaspace("never")), r"normalizes text \(Lower"),
            (
                with_steps({"type": "Strip", "strip_left": True, "strip_right": True}, None),
                r"normalizes text \(Strip\)",
            ),
            (with_steps(REPLACE, v.DIGITS), r"splits text before it merges \(Digits\)"),
            (with_steps(REPLACE, {"type": "Whitespace"}), r"splits text .* \(Whitespace\)"),
            (with_steps(None, None), "leaves spaces as they are"),
            (
                with_steps(None, {**metaspace("always"), "replacement": "_"}),
                "writes spaces as '_'",
            ),
            (with_steps(REPLACE, None, dropout=0.1), "merges with dropout = 0.1"),
        ],
    )
    def test_refused(self, tmp_path: Path, fast: v.Json, says: str) -> None:
        with pytest.raises(TokenizerError, match=rf"tokenizer\.json {says}.* llama\.cpp does not"):
            write_vocabulary(write(tmp_path, fast=fast))

    def test_merges_across_spaces(self, tmp_path: Path) -> None:
        fast = with_steps(None, metaspace("never", split=True))
        folder = write(tmp_path / "none", fast=fast)
        assert not [text for text in fast["model"]["vocab"] if BOUNDARY in text[1:]]
        assert differing(folder, fast_encode(folder)) == []
        fast["model"]["vocab"][BOUNDARY * 2] = 420
        fast["model"]["merges"].append([BOUNDARY, BOUNDARY])
        with pytest.raises(TokenizerError, match="merges no further than a space"):
            write_vocabulary(write(tmp_path / "some", fast=fast, vocab_size=421))


class TestAddedTokens:
    def test_twice(self, tmp_path: Path) -> None:
        decoder = v.decoder_entries(v.added(420, "<x>"), v.added(421, "<x>"))
        folder = write(
            tmp_path,
            model=v.sentencepiece_model(),
            settings={"added_tokens_decoder": decoder},
            vocab_size=422,
        )
        with pytest.raises(TokenizerError, match="token '<x>' twice, as 420 and 421"):
            write_vocabulary(folder)


class TestSentencePiece:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"add_dummy_prefix": False},
            {"user_defined_symbols": ("\n", "\t")},
            {"user_defined_symbols": ("<im>", BOUNDARY * 3, "is"), "add_dummy_prefix": False},
            {"control_symbols": ("[INST]",)},
            {"vocab_size": 600, "split_digits": True, "split_by_whitespace": False},
        ],
    )
    def test_same(self, tmp_path: Path, options: Any) -> None:
        model = v.sentencepiece_model(**{"vocab_size": 420, **options})
        folder = write(tmp_path, model=model, vocab_size=options.get("vocab_size", 420))
        texts = [*TEXTS, "a<im>b <im> is<im>", "   is this   it\n\t\n"]
        assert differing(folder, piece_encode(model), texts, special=False) == []

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"model_type": "unigram"}, "is a unigram model, not BPE"),
            ({"model_type": "char"}, "is a character model, not BPE"),
            ({"normalization_rule_name": "nmt_nfkc"}, r"replaces .* \(normalization nmt_nfkc\)"),
            ({"normalization_rule_name": "nfkc_cf"}, r"replaces .* \(normalization nfkc_cf\)"),
            ({"remove_extra_whitespaces": True}, r"leaves out spaces .*remove_extra_whitespaces"),
            ({"treat_whitespace_as_suffix": True}, "counts a space to the word before it"),
            (
                {"user_defined_symbols": (BOUNDARY * 2,)},
                f"cuts '{BOUNDARY * 2}' out of a text, the space before",
            ),
        ],
    )
    def test_refused(self, tmp_path: Path, options: Any, says: str) -> None:
        folder = write(tmp_path, model=v.sentencepiece_model(**options))
        with pytest.raises(TokenizerError, match=rf"tokenizer\.model {says}.* llama\.cpp does not"):
            write_vocabulary(folder)

    def test_symbols(self, tmp_path: Path) -> None:
        """llama.cpp puts a space behind what it cuts out of a text, and SentencePiece does not."""
        model = v.sentencepiece_model(user_defined_symbols=("<im>",))
        folder = write(tmp_path, model=model)
        assert differing(folder, piece_encode(model), special=False) == []
        tokenize = llama_tokenizer(folder)
        pieces = piece_encode(model)
        assert tokenize("a<im>b") == [*pieces("a"), 3, *pieces("b")]
        assert pieces("<im>")[-1] == 3

    def test_tokenizer_json_counts_where_they_contradict(self, tmp_path: Path) -> None:
        """transformers opens tokenizer.json; of a tokenizer.model beside it nothing is used."""
        fast = v.piece_bpe(v.added(420, "<tool>"))
        fast["model"]["merges"].reverse()
        folder = write(tmp_path, fast=fast, model=v.sentencepiece_model(), vocab_size=421)
        texts = [*TEXTS, "a<tool>b"]
        assert differing(folder, fast_encode(folder), texts) == []

    def test_tokenizer_json_excuses_what_llama_cpp_cannot_do(self, tmp_path: Path) -> None:
        model = v.sentencepiece_model(remove_extra_whitespaces=True)
        folder = write(tmp_path, fast=v.piece_bpe(), model=model)
        assert differing(folder, fast_encode(folder)) == []


class TestBos:
    @pytest.mark.parametrize("opens", [True, False])
    @pytest.mark.parametrize("split", [v.BYTE_LEVEL, v.split(v.LLAMA3_SPLIT), None])
    def test_as_tokenizer_json_says(
        self, tmp_path: Path, opens: bool, split: v.Json | None
    ) -> None:
        from llama_cpp import Llama
        from tokenizers import Tokenizer

        post_processor = v.template(["<s>"]) if opens else None
        if post_processor and split:
            post_processor["special_tokens"]["<s>"]["ids"] = [400]
        if post_processor and not split:
            post_processor["special_tokens"]["<s>"]["ids"] = [1]
        settings = {**PLAIN, "bos_token": "<s>"}
        fast = v.piece_bpe(post_processor=post_processor)
        if split:
            fast = v.byte_level(
                v.added(400, "<s>"),
                pre_tokenizer=split,
                post_processor=post_processor,
                ignore_merges=split is not v.BYTE_LEVEL,
            )
        folder = write(tmp_path, fast=fast, settings=settings, vocab_size=420)
        llama = Llama(str(write_vocabulary(folder)), vocab_only=True, verbose=False)
        right = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("Is it?").ids
        assert llama.tokenize(b"Is it?", add_bos=True, special=True) == right


class TestBytes:
    def test_model_without(self, tmp_path: Path) -> None:
        model = v.sentencepiece_model(byte_fallback=False)
        with pytest.raises(TokenizerError, match=r"tokenizer\.model lacks the byte piece <0x00>"):
            write_vocabulary(write(tmp_path, model=model))

    @pytest.mark.parametrize("byte", [0x0A, 0xF0, 0xFF])
    def test_one_missing(self, tmp_path: Path, byte: int) -> None:
        fast = v.piece_bpe()
        token_id = fast["model"]["vocab"].pop(f"<0x{byte:02X}>")
        fast["model"]["vocab"]["<other>"] = token_id
        with pytest.raises(TokenizerError, match=f"lacks the byte piece <0x{byte:02X}>"):
            write_vocabulary(write(tmp_path, fast=fast))

    def test_replaced_by_an_added_token(self, tmp_path: Path) -> None:
        decoder = v.decoder_entries(v.added(13, "<0x0A>"))
        folder = write(
            tmp_path, model=v.sentencepiece_model(), settings={"added_tokens_decoder": decoder}
        )
        with pytest.raises(TokenizerError, match="has as no byte piece <0x0A>"):
            write_vocabulary(folder)

    def test_without_fallback(self, tmp_path: Path) -> None:
        fast = with_steps(REPLACE, None, byte_fallback=False)
        with pytest.raises(TokenizerError, match=r"byte_fallback is off"):
            write_vocabulary(write(tmp_path, fast=fast))

    def test_every_character_has_tokens(self, tmp_path: Path) -> None:
        tokenize = llama_tokenizer(write(tmp_path, model=v.sentencepiece_model()))
        assert all(tokenize(chr(code)) for code in (*range(1, 0x3000), 0xFFFF, 0x1F999, 0x10FFFF))


class TestByteLevel:
    def test_added_tokens(self, tmp_path: Path) -> None:
        more = [
            v.added(400, "<|user|>", special=False),
            v.added(401, f"two{BOUNDARY}words", special=False),
            v.added(402, "caf\u00e9 , no", special=False, normalized=True),
            v.added(403, "</tool>"),
        ]
        settings = {**PLAIN, "clean_up_tokenization_spaces": True}
        folder = write(tmp_path, fast=v.byte_level(*more), settings=settings, vocab_size=404)
        texts = [
            f"{a}{t['content']}{b}" for t in more for a in ("", "x", " ") for b in ("", "y", " ")
        ]
        assert differing(folder, fast_encode(folder), [*TEXTS, *texts, "two words"]) == []

    def test_bytes_without_a_token(self, tmp_path: Path) -> None:
        fast = v.byte_level()
        lacking = fast["model"]["vocab"].pop("\u010a")  # a line break
        fast["model"]["vocab"]["<unk>"] = lacking
        fast["model"]["merges"] = [m for m in fast["model"]["merges"] if "\u010a" not in "".join(m)]
        gone = [t for t in fast["model"]["vocab"] if "\u010a" in t]
        assert not gone
        folder = write(tmp_path / "left-out", fast=fast, settings=PLAIN, vocab_size=400)
        assert differing(folder, fast_encode(folder), ["a\nb", "\n\n", "x \n y"]) == []
        fast["model"] |= {"unk_token": "<unk>"}
        with pytest.raises(TokenizerError, match=r"no token for the byte .* gives '<unk>' for it"):
            write_vocabulary(write(tmp_path / "unknown", fast=fast, settings=PLAIN, vocab_size=400))
