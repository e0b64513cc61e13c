"""``tokenizer.json`` of byte-level BPE: GPT-2, Llama 3, Qwen2, SmolLM, Tekken and their like."""

from hashlib import sha256
from typing import Any

from quantkit.checkpoint.tokenizer.fast import FastTokenizer, require_room
from quantkit.checkpoint.tokenizer.limits import require_distinct
from quantkit.checkpoint.tokenizer.source import TokenizerSource, steps
from quantkit.checkpoint.tokenizer.vocabulary import (
    BYTE_LETTERS,
    TokenType,
    Vocabulary,
    added_token,
    token_text,
    unused_token,
)
from quantkit.core.errors import TokenizerError
from quantkit.core.profiles import load_profile

_BYTE_LEVEL_SPACE = "\u0120"


def read_vocabulary(source: TokenizerSource, tokenizer: FastTokenizer) -> Vocabulary:
    """The vocabulary, filled up with unused tokens to ``vocab_size``.

    Raises:
        TokenizerError: an id is beyond the vocabulary size.

    """
    by_id = tokenizer.texts_by_id()
    require_room(source, by_id)
    _require_letters(source)
    ids = range(source.vocab_size)
    tokens = [by_id[i] if i in by_id else unused_token(i) for i in ids]
    types = [TokenType.NORMAL if i in by_id else TokenType.UNUSED for i in ids]
    for i, token in tokenizer.added.items():
        # llama.cpp finds these in raw text, as the tokenizers library does, to the letter.
        _, types[i] = added_token(token.content, special=token.special)
        tokens[i] = token.content
    vocabulary = Vocabulary(tokens, types)
    require_distinct(vocabulary, source.fast_file)
    return vocabulary


def _require_letters(source: TokenizerSource) -> None:
    """Check that a byte without a token is left out, which is what llama.cpp does with one."""
    model = source.fast["model"]
    unknown = model.get("unk_token")
    lacking = [chr(letter) for letter in BYTE_LETTERS.values() if chr(letter) not in model["vocab"]]
    if lacking and unknown is not None:
        raise TokenizerError(
            f"{source.fast_file} has no token for the byte that is written {lacking[0]!r} and "
            f"gives {unknown!r} for it, while llama.cpp leaves it out; quantkit cannot convert "
            "this tokenizer."
        )


def merges(source: TokenizerSource) -> list[str]:
    """The merges of tokenizer.json, each as two tokens with a space between them."""
    listed = source.fast["model"].get("merges") or []
    if listed and isinstance(listed[0], str):
        return list(listed)
    return [" ".join(part.replace(" ", _BYTE_LEVEL_SPACE) for part in pair) for pair in listed]


def name_pre_tokenizer(source: TokenizerSource, tokenizer: FastTokenizer) -> str:
    """llama.cpp's name for how a tokenizer splits text before it merges.

    Real vocabularies are known by the ids that they give to a fixed text, as in the converter. Any
    other vocabulary is known by the steps of its pre-tokenizer, where llama.cpp has the same; and
    so is a real one whose steps are others than its name stands for, which that text need not show.

    Raises:
        TokenizerError: llama.cpp has none that splits like this.

    """
    profile = load_profile("pretokenizers.toml")
    digests = _digests(source, tokenizer, profile["text"])
    digest = digests[0]
    known = next((profile["sha256"][d] for d in digests if d in profile["sha256"]), None)
    model = source.fast["model"]
    normalizer = _comparable(source.fast.get("normalizer"), "normalizers")
    seen = {
        "pre_tokenizer": _comparable(tokenizer.pre_tokenizer, "pretokenizers"),
        "ignore_merges": bool(model.get("ignore_merges")),
    }
    # llama.cpp normalizes nothing; NFC leaves nearly all text as it is.
    if normalizer in ([], [{"type": "NFC"}]):
        names = [[entry["name"], *entry.get("alike", ())] for entry in profile["structure"]]
        fitting = [
            alike
            for alike, entry in zip(names, profile["structure"], strict=True)
            if all(seen[part] in entry[part] for part in seen)
        ]
        contradicted = fitting and known not in fitting[0] and any(known in n for n in names)
        if known and not contradicted:
            return str(known)
        if fitting:
            return str(fitting[0][0])
    raise TokenizerError(
        f"{source.fast_file} splits text in a way that llama.cpp is not known to have "
        f"(check value {digest}); quantkit cannot convert this tokenizer."
    )


def _digests(source: TokenizerSource, tokenizer: FastTokenizer, text: str) -> list[str]:
    """What the ids of a text are known by: as they are, and as transformers 4 has surrounded them.

    It goes by the class and the settings, and the converter's list was made with it.
    """
    bare = tokenizer.backend.encode(text, add_special_tokens=False).ids
    bos = tokenizer.ids.get(token_text(source.settings.get("bos_token")) or "<s>")
    listed = [tokenizer.frame.around(bare), bare, [bos, *bare]]
    return [sha256(str(ids).encode()).hexdigest() for ids in listed]


def _comparable(part: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a part of tokenizer.json, without what does not change how a text is split."""
    # Offsets do not; older files do not say use_regex.
    found = [
        {name: value for name, value in s.items() if name != "trim_offsets"}
        for s in steps(part, key)
    ]
    return [{"use_regex": True, **s} if s.get("type") == "ByteLevel" else s for s in found]
