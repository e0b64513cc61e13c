"""Tokenizer files as they lie in checkpoints: trained here, or rebuilt from real vocabularies."""

import base64
import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tests.checkpoint.gguf_fields import read_fields

# llama.cpp carries some real vocabularies for its own tests.
REAL_VOCABULARIES = Path(__file__).parents[2] / "vendor" / "build" / "llama.cpp" / "models"

Json = dict[str, Any]

# The token types of GGUF.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace("{1,3}", "")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What Mistral's files up to version 7 have where they list none (mistral_common's tekken.py).
TEKKEN_SPECIALS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)

BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(pattern: str) -> Json:
    """A pre-tokenizer that splits by a regular expression, then maps bytes to characters."""
    step = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return sequence(step, {**BYTE_LEVEL, "use_regex": False})


def sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def added(token_id: int, text: str, *, special: bool = True, normalized: bool = False) -> Json:
    """An added token as tokenizer.json lists it."""
    return {
        "id": token_id,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": normalized,
        "special": special,
    }


def decoder_entries(*tokens: Json) -> Json:
    """Added tokens as ``added_tokens_decoder`` of tokenizer_config.json lists them."""
    return {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in tokens}


_FIRST = {"<unk>": 0, "<s>": 1, "</s>": 2}  # ids in the small vocabularies


def template(
    before: Sequence[str] = (), after: Sequence[str] = (), between: Sequence[str] = ()
) -> Json:
    """A post-processor that puts special tokens around one text and between two."""

    def special(text: str) -> Json:
        return {"SpecialToken": {"id": text, "type_id": 0}}

    def text(name: str) -> Json:
        return {"Sequence": {"id": name, "type_id": 0}}

    opening, closing = [special(t) for t in before], [special(t) for t in after]
    parting = [special(t) for t in between]
    return {
        "type": "TemplateProcessing",
        "single": [*opening, text("A"), *closing],
        "pair": [*opening, text("A"), *parting, text("B"), *closing],
        "special_tokens": {
            t: {"id": t, "ids": [_FIRST.get(t, 0)], "tokens": [t]}
            for t in {*before, *after, *between}
        },
    }


def write(
    folder: Path,
    *,
    model: bytes | None = None,
    fast: Json | None = None,
    settings: Json | None = None,
    **files: Json | str,
) -> Path:
    """Write a checkpoint folder: config.json first, and the tokenizer files that are given.

    ``files`` are by name with ``__`` for the dot; a text is written as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if model is not None:
        (folder / "tokenizer.model").write_bytes(model)
    named = {"tokenizer__json": fast, "tokenizer_config__json": settings, **files}
    for name, content in named.items():
        if content is not None:
            path = folder / name.replace("__", ".")
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
    return folder


@cache
def sentencepiece_model(vocab_size: int = 420, **options: Any) -> bytes:
    """A tokenizer.model: BPE with byte fallback, as Llama's; ids 0 to 2 are <unk>, <s>, </s>.

    ``options`` are SentencePiece's own, and change what is said here; lists are tuples.
    """
    from sentencepiece import SentencePieceTrainer

    llama: dict[str, Any] = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    changed = {k: list(o) if isinstance(o, tuple) else o for k, o in options.items()}
    settings: Any = {"num_threads": 1, "minloglevel": 2, **llama, **changed}
    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(_lines()), model_writer=out, vocab_size=vocab_size, **settings
    )
    return out.getvalue()


@cache
def _pieces() -> tuple[str, ...]:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=sentencepiece_model())
    return tuple(processor.IdToPiece(i) for i in range(processor.vocab_size()))


def piece_bpe(*more: Json, post_processor: Json | None = None) -> Json:
    """The tokenizer.json of ``sentencepiece_model()``, with more added tokens."""
    vocab = {piece: i for i, piece in enumerate(_pieces())}
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in _pieces()[259:]
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    specials = [added(i, piece) for i, piece in enumerate(_pieces()[:3])]
    boundary = "\u2581"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [*specials, *more],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": boundary},
                {"type": "Replace", "pattern": {"String": " "}, "content": boundary},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": post_processor,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": boundary}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {**_bpe(vocab, merges, fuse_unk=True, byte_fallback=True), "unk_token": "<unk>"},
    }


@cache
def _byte_level_model() -> tuple[dict[str, int], list[list[str]]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]


def byte_level(
    *more: Json,
    pre_tokenizer: Json = BYTE_LEVEL,
    post_processor: Json | None = None,
    normalizer: Json | None = None,
    **model: Any,
) -> Json:
    """The tokenizer.json of a small byte-level BPE of 400 tokens, with more added tokens."""
    vocab, merges = _byte_level_model()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(more),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": {**BYTE_LEVEL},
        "model": _bpe(dict(vocab), list(merges), **model),
    }


def tekken(n_tokens: int = 414, specials: Sequence[str] = TEKKEN_SPECIALS, **config: Any) -> Json:
    """A tekken.json with the small byte-level vocabulary and 24 special tokens."""
    from quantkit.checkpoint.tokenizer.vocabulary import BYTE_LETTERS

    bytes_ = {chr(letter): byte for byte, letter in BYTE_LETTERS.items()}
    letters, _ = _byte_level_model()
    longer = [token for token in sorted(letters, key=letters.__getitem__) if len(token) > 1]
    ordinary = [bytes([b]) for b in range(256)]
    ordinary += [bytes(bytes_[letter] for letter in token) for token in longer]
    settings = {
        "pattern": TEKKEN_SPLIT,
        "num_vocab_tokens": len(ordinary),
        "default_vocab_size": n_tokens,
        "default_num_special_tokens": 24,
        "version": "v7",
    }
    return {
        "config": {**settings, **config},
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for i, token in enumerate(ordinary)
        ],
        "special_tokens": [
            {"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(specials)
        ],
    }


def from_gguf(
    name: str,
    pre_tokenizer: Json,
    post_processor: Json | None,
    normalizer: Json | None = None,
    **model: Any,
) -> Json:
    """The tokenizer.json of a real model, rebuilt from the vocabulary that llama.cpp carries."""
    fields = read_fields(REAL_VOCABULARIES / f"ggml-vocab-{name}.gguf")
    tokens = fields["tokenizer.ggml.tokens"].value
    types = fields["tokenizer.ggml.token_type"].value
    merges = fields["tokenizer.ggml.merges"].value
    more = [
        added(i, token, special=kind == CONTROL)
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    normal = {t: i for i, (t, k) in enumerate(zip(tokens, types, strict=True)) if k == NORMAL}
    return {
        **byte_level(*more, pre_tokenizer=pre_tokenizer, post_processor=post_processor),
        "normalizer": normalizer,
        "model": _bpe(normal, merges, **model),
    }


def _bpe(vocab: dict[str, int], merges: list[Any], **more: Any) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
        **more,
    }


def _lines() -> list[str]:
    return [line for name in sorted(topics)[:30] for line in topics[name].splitlines()]
