"""What a model must do to pass the smoke test. Runs in the worker, where llama.cpp may crash."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import SmokeError
from quantkit.verification.bindings import LlamaModel
from quantkit.verification.file_size import check_size
from quantkit.verification.library import facts
from quantkit.verification.tokens import show_ids, show_text

_SENTENCEPIECE, _BPE, _WORDPIECE, _UNIGRAM = 1, 2, 3, 4  # LLAMA_VOCAB_TYPE_*
_NORMALIZING = (_WORDPIECE, _UNIGRAM)
_ATTR_NORMAL, _ATTR_BYTE = 1 << 2, 1 << 5  # LLAMA_TOKEN_ATTR_*
_N_PROMPT = 24

# Plain text of the kinds that tokenizers get wrong. None is affected by Unicode normalization.
_PROBES = (
    "Hello, world! It's 3.14159 or 1,234,567.",
    "  two leading spaces,   three inside, one trailing ",
    "line one\nline two\n\n\tdef f(x):\n\t\treturn x ** 2\r\n",
    "0123456789",
    "naïve café, Übergröße, mañana, œuvre",
    "Привет, мир. Ωκεανός. שלום",
    "漢字とかな、한국어、中文。",
    "🙂 👩\u200d🚀 🇪🇺",
    "<>{}[]()#@$%^&*~`|\\/\"'=+-_;:",
)
# What a model that embeds is given: no two of them mean the same.
_TEXTS = (
    "The river ran quietly through the old town.",
    "Interest rates will stay as they are, said the bank on Tuesday.",
    "Add two spoons of flour, stir, and let it rest for an hour.",
    "def add(a, b): return a + b",
    "Who painted the ceiling?",
)
_PROMPT = (
    "The river ran quietly through the old town, past the mill and the market, and every "
    "morning the same people crossed the same bridge on their way to work."
)


def check_model(
    files: list[Path],
    *,
    extra_buffers: bool,
    threads: int,
    gpu_layers: int,
    n_tokens: int,
    tokens: Mapping[str, Any] | None,
    report: dict[str, Any],
    begin: Callable[[str], None],
) -> None:
    """Load a model and put it through every check, noting what was seen in ``report``.

    Args:
        files: the GGUF file, or all shards in order.
        extra_buffers: whether llama.cpp may use its special CPU weight layouts.
        threads: how many threads llama.cpp computes with.
        gpu_layers: how many layers a GPU takes.
        n_tokens: how many tokens to generate, greedily.
        tokens: what the checkpoint's own tokenizer gives, the fields of an `ExpectedTokens`.
        report: gains ``load_seconds``, ``text``, ``tokens_per_second`` and ``details``; of a model
            that embeds, no text.
        begin: told what comes next, as words that fit after "while".

    Raises:
        SmokeError: the first check that failed.

    """
    details = report["details"]
    begin("starting")
    details["llama.cpp"] = facts()
    begin("reading the header")
    for file in files:
        check_size(file)
    begin("loading the model")
    start = time.perf_counter()
    model = LlamaModel(
        files[0], extra_buffers=extra_buffers, threads=threads, gpu_layers=gpu_layers
    )
    report["load_seconds"] = time.perf_counter() - start
    details |= {
        "model": model.description,
        "n_vocab": model.n_vocab,
        "n_ctx": model.n_ctx,
        "threads": threads,
    }
    begin("reading the vocabulary")
    vocabulary = _check_vocabulary(model)
    begin("tokenizing")
    if tokens is None or tokens["lacking"]:
        details["round_trips"] = _check_round_trips(model, vocabulary)
        details["repeats"] = _check_repeats(model)
        if tokens is not None:
            details["tokens"] = {"lacking": tokens["lacking"]}
    else:
        details["tokens"] = _compare_tokens(model, tokens, begin)
    if model.embeds:
        begin("embedding texts")
        details["embeddings"] = _check_embeddings(model, vocabulary)
        return
    begin("evaluating the prompt")
    prompt = _prompt(model, vocabulary)
    details["prompt_tokens"] = len(prompt)
    if model.translates:
        begin("encoding the prompt")
        prompt = [model.read(prompt)]
    logits = model.evaluate(prompt)
    for position, row in enumerate(logits):
        _check_logits(row, f"after prompt token {position + 1}")
    begin("generating")
    _generate(model, logits[-1], n_tokens, report)


def _check_vocabulary(model: LlamaModel) -> frozenset[bytes]:
    """Every token's text, once the tokens make sense one by one."""
    if model.vocabulary_type == 0:
        raise SmokeError("It holds no vocabulary, so it cannot turn text into tokens.")
    texts, byte_tokens = set(), set()
    for index in range(model.n_vocab):
        text, attributes, score = model.token(index)
        try:
            text.decode()
        except UnicodeDecodeError:
            raise SmokeError(f"Token {index} of its vocabulary is not valid UTF-8.") from None
        if not attributes:
            raise SmokeError(f"Token {index} of its vocabulary has no valid token type.")
        if not math.isfinite(score):
            raise SmokeError(f"Token {index} of its vocabulary has the score {score}.")
        texts.add(text)
        if attributes & _ATTR_BYTE:
            byte_tokens.add(text)
    if byte_tokens and byte_tokens != _BYTE_FALLBACK:
        raise SmokeError("The byte tokens of its vocabulary are not the 256 from <0x00> to <0xFF>.")
    for name in ("bos", "eos", "unknown"):
        index_text = model.metadata(f"tokenizer.ggml.{name}_token_id")
        if index_text is not None and not 0 <= int(index_text) < model.n_vocab:
            raise SmokeError(
                f"Its {name} token has the id {index_text}, outside its vocabulary of "
                f"{model.n_vocab} tokens."
            )
    return frozenset(texts)


def _byte_alphabet() -> dict[int, bytes]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2's scheme)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte).encode() for byte in printable} | {
        byte: chr(256 + i).encode() for i, byte in enumerate(others)
    }


_BYTE_FALLBACK = {f"<0x{byte:02X}>".encode() for byte in range(256)}
_BYTE_ALPHABET = _byte_alphabet()


def _spells(model: LlamaModel, vocabulary: frozenset[bytes], text: str) -> bool:
    """Whether the vocabulary has a way to write any text with these characters.

    Only then must a round trip be exact. llama.cpp drops what a byte-level vocabulary without
    all bytes cannot write, and aborts on it where a SentencePiece one has no byte tokens.
    """
    if model.vocabulary_type == _SENTENCEPIECE:
        return vocabulary >= _BYTE_FALLBACK or all(
            character.encode() in vocabulary for character in text.replace(" ", "▁") + "▁"
        )
    if model.vocabulary_type == _BPE:
        return all(_BYTE_ALPHABET[byte] in vocabulary for byte in text.encode())
    return False  # WordPiece and Unigram normalize: see `_check_repeats`


def _check_round_trips(model: LlamaModel, vocabulary: frozenset[bytes]) -> int:
    """How many probes came back exactly, having failed on any that should have and did not."""
    count = 0
    for probe in _PROBES:
        if not _spells(model, vocabulary, probe):
            continue
        tokens = model.tokenize(probe, add_special=False)
        back = b"".join(model.piece(token) for token in tokens)
        # A SentencePiece vocabulary may put one space before the first word.
        if back not in (probe.encode(), b" " + probe.encode()):
            raise SmokeError(
                f"Its tokenizer turns {probe!r} into {back.decode(errors='replace')!r}: "
                "the token round trip is wrong."
            )
        count += 1
    return count


def _check_repeats(model: LlamaModel) -> int:
    """How many probes give the same tokens again when they are written out.

    WordPiece and Unigram vocabularies change a text before they cut it (small letters, no accents,
    other spaces), so that it does not come back. But what comes back is changed no more: its tokens
    must be the same. What such a vocabulary does not know at all is written otherwise.
    """
    if model.vocabulary_type not in _NORMALIZING:
        return 0
    count = 0
    for probe in _PROBES:
        tokens = model.tokenize(probe, add_special=False)
        if not tokens or any(model.is_unknown(token) for token in tokens):
            continue
        back = b"".join(model.piece(token) for token in tokens).decode(errors="replace")
        again = model.tokenize(back.removeprefix(" "), add_special=False)
        if again != tokens:
            raise SmokeError(
                f"Its tokenizer turns {probe!r} into {back!r} and that into other tokens: "
                "its vocabulary contradicts itself."
            )
        count += 1
    return count


def _check_embeddings(model: LlamaModel, vocabulary: frozenset[bytes]) -> dict[str, Any]:
    """Embed a few texts: the numbers must be finite, differ between texts, and repeat."""
    texts = [model.tokenize(text, add_special=True) for text in _TEXTS]
    if not all(_spells(model, vocabulary, text) for text in _TEXTS) and (
        model.vocabulary_type not in _NORMALIZING
    ):
        plain = _prompt(model, vocabulary)
        texts = [plain[start : start + 4] for start in range(0, len(plain), 4)]
    # As many tokens of each, so that nothing but what they mean can make a difference.
    length = min(model.most_tokens, *map(len, texts))
    texts = [tokens[:length] for tokens in texts]
    rows = [model.embed(tokens) for tokens in texts]
    for number, row in enumerate(rows, 1):
        if not np.isfinite(row).all():
            bad = int((~np.isfinite(row)).sum())
            raise SmokeError(
                f"llama.cpp computes NaN or infinite embeddings with it: {bad} of {row.size} "
                f"numbers of text {number}."
            )
        if not row.any():
            raise SmokeError(f"llama.cpp computes only zeros with it as embedding {number}.")
    if all(np.allclose(row, rows[0], rtol=1e-6) for row in rows):
        raise SmokeError("llama.cpp computes the same embedding for every text with it.")
    again = model.embed(texts[0])
    if not np.allclose(again, rows[0], rtol=1e-4, atol=1e-4 * float(np.abs(rows[0]).max())):
        raise SmokeError(
            "llama.cpp computes a different embedding of the same text the second time."
        )
    return {"texts": len(rows), "numbers": int(rows[0].size), "pooling": model.pooling}


def _compare_tokens(
    model: LlamaModel, expected: Mapping[str, Any], begin: Callable[[str], None]
) -> dict[str, Any]:
    """Compare llama.cpp's tokens with those of the checkpoint's own tokenizer.

    Returns:
        ``tokenizer``: the file; ``texts``: how many were compared; ``deviations``: by name, how
        many texts come out otherwise because no GGUF key can say what the tokenizer does.

    """
    texts, file = expected["texts"], expected["file"]
    excused: Counter[str] = Counter()
    wrong = []
    for text, ids, simpler, names in texts:
        # llama.cpp aborts on what a vocabulary cannot spell, so each text is announced.
        begin(f"tokenizing {show_text(text)}")
        found = model.tokenize(text, add_special=False, parse_special=True)
        if found == ids:
            continue
        if simpler is not None and found == simpler:
            excused.update(names)
        else:
            wrong.append((text, ids, found))
    for text, ids in expected["framed"]:
        begin(f"tokenizing {show_text(text)} with the tokens around it")
        found = model.tokenize(text, add_special=True, parse_special=True)
        if found != ids:
            wrong.append((text, ids, found))
    n_texts = len(texts) + len(expected["framed"])
    if wrong:
        text, ids, found = wrong[0]
        raise SmokeError(
            f"Its tokens are not the model's: {show_text(text)} is {show_ids(ids, found)} for "
            f"{file} and {show_ids(found, ids)} for llama.cpp ({len(wrong)} of {n_texts} "
            "texts differ)."
        )
    return {"tokenizer": file, "texts": n_texts, "deviations": dict(excused)}


def _prompt(model: LlamaModel, vocabulary: frozenset[bytes]) -> list[int]:
    if model.vocabulary_type in _NORMALIZING or _spells(model, vocabulary, _PROMPT):
        return model.tokenize(_PROMPT, add_special=True)[:_N_PROMPT]
    normal = (i for i in range(model.n_vocab) if model.token(i)[1] & _ATTR_NORMAL)
    return [index for index, _ in zip(normal, range(_N_PROMPT), strict=False)]


def _check_logits(logits: NDArray[np.float32], where: str) -> None:
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).sum())
        raise SmokeError(
            f"llama.cpp computes NaN or infinite logits with it: {bad} of {logits.size} {where}."
        )
    if logits.min() == logits.max():
        raise SmokeError(f"llama.cpp computes the same logit for every token with it {where}.")


def _generate(
    model: LlamaModel, logits: NDArray[np.float32], n_tokens: int, report: dict[str, Any]
) -> None:
    """Generate greedily. The text ends at the first end token, the measured work does not."""
    tokens: list[int] = []
    seconds = 0.0
    for _ in range(n_tokens):
        tokens.append(int(logits.argmax()))
        start = time.perf_counter()
        logits = model.evaluate(tokens[-1:])[0]
        seconds += time.perf_counter() - start
        _check_logits(logits, f"after generated token {len(tokens)}")
    report["tokens_per_second"] = n_tokens / seconds
    ends = [i for i, token in enumerate(tokens) if model.ends_generation(token)]
    spoken = tokens[: ends[0]] if ends else tokens
    text = b"".join(model.piece(token) for token in spoken)
    report["text"] = text.decode(errors="replace")
    report["details"]["generated_tokens"] = len(spoken)
