"""Every ``tokenizer.*`` key against llama.cpp's own converter: names, order, types and bytes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import native_tools
from tests.checkpoint import vocabularies as v
from tests.checkpoint.frames import frame_of, said_frame
from tests.checkpoint.gguf_fields import Field, read_fields
from tests.checkpoint.llama_tokens import write_vocabulary

pytestmark = pytest.mark.native

# Runs where the converter's packages are. It converts many vocabularies at once, because importing
# those packages takes longer than all the rest. The converter knows byte-level vocabularies by name
# only, so for those made up here it is told the name that it cannot find.
CONVERT = """
import json, os, sys, traceback
from pathlib import Path
tree, jobs = sys.argv[1:]
sys.path.insert(0, tree)
import torch
from conversion import get_model_class
from conversion.base import gguf
model_class = get_model_class("LlamaForCausalLM")
name_pre_tokenizer = model_class.get_vocab_base_pre
for folder, out, told in json.loads(Path(jobs).read_text()):
    def name(self, tokenizer):
        try:
            return name_pre_tokenizer(self, tokenizer)
        except NotImplementedError:
            if told is None:
                raise
            return told
    model_class.get_vocab_base_pre = name
    try:
        with torch.inference_mode():
            model_class(Path(folder), gguf.LlamaFileType.MOSTLY_BF16, Path(out)).write_vocab()
    except Exception:
        Path(out).unlink(missing_ok=True)
        Path(out + ".failed").write_text(traceback.format_exc())
Path(jobs + ".done").touch()
"""

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
END = "<|endoftext|>"
GPT2 = {"tokenizer_class": "GPT2Tokenizer", "bos_token": END, "eos_token": END, "unk_token": END}
ADDED = [
    v.added(420, "<|im_start|>", special=False),
    v.added(421, "a\u2581b c", special=False, normalized=True),
    v.added(422, "<tool>"),
]
SPECIALS = [v.added(i, t) for i, t in enumerate(("<unk>", "<s>", "</s>"))]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
NAMED = [
    {"name": "default", "template": TEMPLATE},
    {"name": "tool use", "template": "tools"},
    {"name": "rag", "template": "documents"},
    {"name": "empty", "template": ""},
]


def case(
    vocab_size: int, told: str | None = None, config: v.Json | None = None, **files: Any
) -> Any:
    return files, {**CONFIG, "vocab_size": vocab_size, **(config or {})}, told


def pieces(vocab_size: int = 420, **files: Any) -> Any:
    return case(vocab_size, model=v.sentencepiece_model(), **files)


def tiny(*more: v.Json, vocab_size: int = 400, told: str = "gpt-2", **files: Any) -> Any:
    """A small byte-level vocabulary with added tokens; files may change its tokenizer.json."""
    parts = {k: files.pop(k) for k in list(files) if k in ("normalizer", "post_processor", "model")}
    model = parts.pop("model", {})
    fast = v.byte_level(*more, **parts, **model)
    return case(vocab_size, told, fast=fast, **files)


def gpt2(**files: Any) -> Any:
    fast = v.from_gguf("gpt-2", v.BYTE_LEVEL, None)
    return case(50257, fast=fast, settings=GPT2, config={"bos_token_id": 50256}, **files)


def llama3() -> Any:
    bos = "<|begin_of_text|>"
    opening = v.template([bos], between=[bos])
    opening["special_tokens"][bos]["ids"] = [128000]
    post_processor = {"type": "Sequence", "processors": [{**v.BYTE_LEVEL}, opening]}
    fast = v.from_gguf("llama-bpe", v.split(v.LLAMA3_SPLIT), post_processor, ignore_merges=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": True,
        "added_tokens_decoder": v.decoder_entries(*fast["added_tokens"]),
        "chat_template": TEMPLATE,
    }
    return case(128256, fast=fast, settings=settings, config={"bos_token_id": 128000})


def deepseek_coder() -> Any:
    """A Llama checkpoint whose tokenizer class, not its tokenizer.json, adds the first token."""
    patterns = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+")
    splits = [v.split(pattern)["pretokenizers"][0] for pattern in patterns]
    last = v.split("")["pretokenizers"][1]
    fast = v.from_gguf("deepseek-coder", v.sequence(*splits, v.DIGITS, last), None)
    begin, end = (f"<\uff5c{word}\u2581of\u2581sentence\uff5c>" for word in ("begin", "end"))
    settings = {
        "tokenizer_class": "LlamaTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": begin, "normalized": True},
        "eos_token": {"__type": "AddedToken", "content": end, "normalized": True},
        "unk_token": None,
        "add_bos_token": True,
        "add_eos_token": False,
    }
    return case(32256, fast=fast, settings=settings, config={"bos_token_id": 32013})


def qwen2() -> Any:
    fast = v.from_gguf("qwen2", v.split(v.QWEN2_SPLIT), {**v.BYTE_LEVEL}, {"type": "NFC"})
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": END,
        "pad_token": END,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "add_prefix_space": False,
    }
    return case(151936, fast=fast, settings=settings)


WITH_SYMBOLS = v.sentencepiece_model(user_defined_symbols=("<im>",))

CASES: dict[str, Callable[[], Any]] = {
    # tokenizer.model
    "pieces": pieces,
    "pieces_no_settings_padded": lambda: pieces(450),
    "pieces_cut_off": lambda: pieces(400),
    "pieces_codellama_size": lambda: pieces(32016, settings=LLAMA),
    "pieces_codellama_fast": lambda: pieces(
        32016,
        fast=v.piece_bpe(post_processor=v.template(["<s>"], ["</s>"])),
        settings={**LLAMA, "eos_token": "<unk>", "add_eot_token": True},
    ),
    "pieces_granite_size": lambda: pieces(49152, settings={**LLAMA, "add_bos_token": True}),
    "pieces_added_tokens_json": lambda: pieces(
        430, added_tokens__json={"<pad>": 420, "x\u2581y": 421, "beyond": 430}
    ),
    "pieces_decoder": lambda: pieces(
        424, settings={**LLAMA, "added_tokens_decoder": v.decoder_entries(*SPECIALS, *ADDED)}
    ),
    "pieces_prefix_space_off": lambda: pieces(settings={**LLAMA, "add_prefix_space": False}),
    "pieces_prefix_space_on": lambda: pieces(settings={**LLAMA, "add_prefix_space": True}),
    "pieces_flags": lambda: pieces(
        settings={**LLAMA, "add_bos_token": True, "add_eos_token": False, "add_sep_token": True}
    ),
    "pieces_template": lambda: pieces(settings={**LLAMA, "chat_template": TEMPLATE}),
    "pieces_templates": lambda: pieces(settings={**LLAMA, "chat_template": NAMED}),
    "pieces_named_templates_only": lambda: pieces(settings={**LLAMA, "chat_template": NAMED[1:]}),
    "pieces_template_null": lambda: pieces(
        settings={**LLAMA, "chat_template": None}, chat_template__jinja=TEMPLATE
    ),
    "pieces_jinja": lambda: pieces(settings=LLAMA, chat_template__jinja=TEMPLATE + "\r\n"),
    "pieces_jinja_without_settings": lambda: pieces(chat_template__jinja=TEMPLATE),
    "pieces_chat_template_json": lambda: pieces(
        settings=LLAMA, chat_template__json={"chat_template": TEMPLATE}
    ),
    "pieces_ids_out_of_range": lambda: pieces(
        settings=LLAMA, config={"pad_token_id": 420, "eos_token_id": [2, 3], "sep_token_id": 5}
    ),
    "pieces_fast_llama": lambda: pieces(
        fast=v.piece_bpe(post_processor=v.template(["<s>"], between=["<s>"])),
        settings={**LLAMA, "unk_token": "<unk>", "add_bos_token": False, "add_eos_token": False},
    ),
    "pieces_fast_dicts": lambda: pieces(
        fast=v.piece_bpe(post_processor=v.template(["<s>"], ["</s>"])),
        settings={
            f"{kind}_token": {**token, "__type": "AddedToken"}
            for kind, token in zip(
                ("unk", "bos", "eos"), v.decoder_entries(*SPECIALS).values(), strict=True
            )
        },
    ),
    "pieces_fast_without_settings": lambda: pieces(
        fast=v.piece_bpe(post_processor=v.template(["<s>"], ["</s>"], ["</s>"]))
    ),
    "pieces_fast_separator": lambda: pieces(
        fast=v.piece_bpe(post_processor=v.template(["<s>"], between=["</s>"])), settings=LLAMA
    ),
    "pieces_fast_two_separators": lambda: pieces(
        fast=v.piece_bpe(post_processor=v.template(["<s>"], ["</s>"], ["</s>", "</s>"])),
        settings=LLAMA,
    ),
    "pieces_fast_roberta": lambda: pieces(
        fast=v.piece_bpe(
            post_processor={
                "type": "RobertaProcessing",
                "sep": ["</s>", 2],
                "cls": ["<s>", 1],
                "trim_offsets": True,
                "add_prefix_space": False,
            }
        ),
        settings=LLAMA,
    ),
    "pieces_fast_cls_and_sep": lambda: pieces(
        fast=v.piece_bpe(post_processor=v.template(["<unk>"], ["<unk>"])),
        settings={"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<unk>"},
    ),
    "pieces_fast_lowercase": lambda: pieces(
        fast={
            **v.piece_bpe(),
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Lowercase"},
                    {"type": "Sequence", "normalizers": [{"type": "StripAccents"}]},
                ],
            },
        },
        settings=LLAMA,
    ),
    "pieces_symbols": lambda: case(420, model=WITH_SYMBOLS, settings=LLAMA),
    "pieces_symbols_in_decoder": lambda: case(
        420,
        model=WITH_SYMBOLS,
        settings={
            **LLAMA,
            "added_tokens_decoder": v.decoder_entries(*SPECIALS, v.added(3, "<im>", special=False)),
        },
    ),
    # tokenizer.json, SentencePiece-style
    "bpe": lambda: case(420, fast=v.piece_bpe(), settings=LLAMA),
    "bpe_without_settings": lambda: case(420, fast=v.piece_bpe()),
    "bpe_plain_class": lambda: case(
        420, fast=v.piece_bpe(post_processor=v.template(["<s>"])), settings=PLAIN
    ),
    "bpe_added": lambda: case(
        423, fast=v.piece_bpe(*ADDED), settings={**PLAIN, "pad_token": "<|im_start|>"}
    ),
    "bpe_added_decoder": lambda: case(
        423,
        fast=v.piece_bpe(),
        settings={
            **LLAMA,
            "added_tokens_decoder": v.decoder_entries(*SPECIALS, *ADDED),
            "additional_special_tokens": ["<tool>"],
        },
    ),
    "bpe_special_map": lambda: case(
        424,
        fast=v.piece_bpe(*ADDED),
        settings={"tokenizer_class": "LlamaTokenizer", "additional_special_tokens": ["a\u2581b c"]},
        special_tokens_map__json={
            "pad_token": {"content": "<pad>", "lstrip": False},
            "additional_special_tokens": ["<tool>"],
        },
    ),
    "bpe_code_llama": lambda: case(
        424, fast=v.piece_bpe(), settings={**LLAMA, "tokenizer_class": "CodeLlamaTokenizer"}
    ),
    "bpe_prefix_space": lambda: case(
        420, fast=v.piece_bpe(), settings={**PLAIN, "add_prefix_space": True}
    ),
    # tokenizer.json, byte-level
    "gpt2": gpt2,
    "gpt2_text_merges_padding": lambda: gpt2(
        generation_config__json={}, chat_template__jinja=TEMPLATE
    ),
    "llama3": llama3,
    "qwen2": qwen2,
    "deepseek_coder": deepseek_coder,
    "tiny": lambda: tiny(v.added(400, END), vocab_size=401, settings=GPT2),
    "tiny_padded": lambda: tiny(v.added(400, END), vocab_size=410, settings=GPT2),
    "tiny_added": lambda: tiny(
        v.added(400, END),
        v.added(401, "<|user|>", special=False),
        v.added(402, "two words\u2581more", special=False, normalized=True),
        v.added(403, "caf\u00e9 , no", special=False),
        v.added(5, v.byte_level()["model"]["vocab"] and "&", special=False),
        vocab_size=404,
        settings={**GPT2, "clean_up_tokenization_spaces": True},
    ),
    "tiny_decoder_flags": lambda: tiny(
        v.added(400, END),
        v.added(401, "<x>", special=False),
        vocab_size=404,
        settings={
            **GPT2,
            "added_tokens_decoder": v.decoder_entries(
                v.added(400, END), v.added(401, "<x>"), v.added(402, "<y>", special=False)
            ),
            "pad_token": "<pad>",
        },
    ),
    "tiny_flags": lambda: tiny(
        v.added(400, END),
        vocab_size=401,
        settings={**GPT2, "add_bos_token": True, "add_eos_token": True},
        post_processor={**v.BYTE_LEVEL},
    ),
    "tiny_extra_special": lambda: tiny(
        vocab_size=403,
        settings={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "extra_special_tokens": {"image_token": "<image>"},
            "additional_special_tokens": ["<a>", "<b>"],
        },
    ),
    "tiny_neox": lambda: tiny(
        v.added(400, END),
        vocab_size=401,
        settings={"tokenizer_class": "GPTNeoXTokenizerFast", "bos_token": END, "eos_token": END},
    ),
    "tiny_granite_size": lambda: tiny(
        v.added(400, END),
        vocab_size=49152,
        settings={**GPT2, "add_bos_token": True, "chat_template": TEMPLATE},
    ),
}


@dataclass(frozen=True)
class Difference:
    """A key in which quantkit departs from the converter: when, why, and what is right instead."""

    when: Callable[[v.Json], bool]
    """Of which tokenizer.json, where that is a folder's only tokenizer."""
    reason: str
    right: Callable[[v.Json, list[Any]], list[Any]]
    """The values for a tokenizer.json, from the converter's."""


def merge_ranks(fast: v.Json, converters: list[float]) -> list[float]:
    best: dict[int, int] = {}
    for rank, (left, right) in enumerate(fast["model"]["merges"]):
        best.setdefault(fast["model"]["vocab"][left + right], rank)
    return [float(-best[i]) if i in best else score for i, score in enumerate(converters)]


def cut_out(fast: v.Json, converters: list[int]) -> list[int]:
    kinds = {
        token["id"]: v.CONTROL if token["special"] else v.USER_DEFINED
        for token in fast["added_tokens"]
    }
    return [kind if kind == v.CONTROL else kinds.get(i, kind) for i, kind in enumerate(converters)]


def as_written(fast: v.Json, converters: list[str]) -> list[str]:
    texts = {token["id"]: token["content"] for token in fast["added_tokens"]}
    return [texts.get(i, text) for i, text in enumerate(converters)]


# What these say must be what transformers 5 puts around a text. The converter goes by the settings
# and by what transformers 4 makes of them: where its keys say otherwise, quantkit's are others.
FRAME_KEYS = [f"tokenizer.ggml.{name}" for name in ("add_bos_token", "add_eos_token")] + [
    f"tokenizer.ggml.{kind}_token_id" for kind in ("bos", "eos", "eot")
]

DIFFERENCES = {
    "tokenizer.ggml.tokens": Difference(
        lambda fast: not fast["model"].get("byte_fallback"),
        "The converter tidies up the text of an added token, which is then not found in a text.",
        as_written,
    ),
    "tokenizer.ggml.scores": Difference(
        lambda fast: bool(fast["model"].get("byte_fallback")),
        "The converter writes -1000 for every token, so llama.cpp merges from left to right.",
        merge_ranks,
    ),
    "tokenizer.ggml.token_type": Difference(
        lambda fast: bool(fast["model"].get("byte_fallback")),
        "The converter knows a special token only by a setting that names it; of others it says "
        "that they are ordinary, and llama.cpp does not find them in a text, or user-defined.",
        cut_out,
    ),
}

ONLY_OURS = {
    "pieces_template_null": "tokenizer_config.json's null hides chat_template.jinja from it.",
    "pieces_jinja_without_settings": "Without tokenizer_config.json it looks for no template.",
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every case's folder, with the converter's GGUF beside it."""
    base = tmp_path_factory.mktemp("parity")
    jobs = []
    for name, make in CASES.items():
        files, config, told = make()
        v.write(base / name, config__json=config, **files)
        jobs.append([str(base / name), f"{base / name}.gguf", told])
    script, listing = base / "convert.py", base / "jobs.json"
    script.write_text(CONVERT)
    listing.write_text(json.dumps(jobs))
    tree = native_tools.CONVERTER.parent
    native_tools.run([native_tools.PYTHON, script, tree, listing], makes=Path(f"{listing}.done"))
    return {name: base / name for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_every_key_is_the_converters(converted: dict[str, Path], name: str) -> None:
    folder = converted[name]
    failed = Path(f"{folder}.gguf.failed")
    assert not failed.exists(), failed.read_text()
    theirs = tokenizer_fields(Path(f"{folder}.gguf"))
    ours = tokenizer_fields(write_vocabulary(folder))
    fast = only_fast(folder)
    if name in ONLY_OURS:  # a template that transformers takes and the converter does not
        assert "tokenizer.chat_template" not in theirs
        assert ours.pop("tokenizer.chat_template").value == TEMPLATE, ONLY_OURS[name]
    said, converters = (said_frame({k: f.value for k, f in x.items()}) for x in (ours, theirs))
    # Of a tokenizer.model alone without a flag, transformers 4 counts, as in the converter.
    around = converters if says_nothing_of_bos(folder) else frame_of(folder)
    assert said == around
    if converters != around:
        theirs, ours = (
            {key: field for key, field in fields.items() if key not in FRAME_KEYS}
            for fields in (theirs, ours)
        )
    assert list(ours) == list(theirs)
    for key in theirs:
        if key == "tokenizer.chat_templates":  # the converter lists a set, in any order
            assert sorted(ours[key].value) == sorted(theirs[key].value)
        elif name == "pieces_symbols" and key == "tokenizer.ggml.token_type":
            # Ordinary to the converter, and then llama.cpp never gives it.
            assert theirs[key].value[3] == v.NORMAL
            right = [v.USER_DEFINED if i == 3 else kind for i, kind in enumerate(theirs[key].value)]
            assert ours[key].value == right
        elif fast and key in DIFFERENCES and DIFFERENCES[key].when(fast):
            right = DIFFERENCES[key].right(fast, theirs[key].value)
            assert ours[key].value == right, DIFFERENCES[key].reason
        else:
            assert ours[key].raw == theirs[key].raw, key


def says_nothing_of_bos(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    return not (folder / "tokenizer.json").exists() and "add_bos_token" not in settings


def only_fast(folder: Path) -> v.Json | None:
    """A folder's tokenizer.json, None where a tokenizer.model is beside it."""
    path = folder / "tokenizer.json"
    alone = path.is_file() and not (folder / "tokenizer.model").exists()
    return json.loads(path.read_text()) if alone else None


def tokenizer_fields(path: Path) -> dict[str, Field]:
    """The ``tokenizer.*`` keys of a GGUF in their order."""
    fields = read_fields(path)
    return {name: field for name, field in fields.items() if name.startswith("tokenizer.")}
