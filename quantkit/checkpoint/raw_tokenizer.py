"""The tokenizer of a raw Mistral release as transformers would have it."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from quantkit.checkpoint.names import LICENSES
from quantkit.checkpoint.tokenizer.model_file import ModelSettings, read_settings
from quantkit.checkpoint.tokenizer.sentencepiece import open_model, require_bpe, symbols
from quantkit.checkpoint.tokenizer.source import MODEL, TEKKEN, tokenizer_files
from quantkit.checkpoint.tokenizer.tekken import read_tekken
from quantkit.checkpoint.tokenizer.vocabulary import WORD_BOUNDARY
from quantkit.core.errors import TokenizerError
from quantkit.core.files import has_file, read_file
from quantkit.core.writing import create, replace_file

_NUMBERED = re.compile(r"tokenizer\.model\.v(\d+)")
_SIDE_FILES = ("generation_config.json", "README.md", *LICENSES)


def add_tokenizer_files(raw: Path, folder: Path) -> dict[str, int]:
    """Put a release's tokenizer and side files into a folder; the ids of its special tokens.

    Where the release has no tokenizer_config.json or tokenizer.json, they are written to say what
    Mistral's tokenizers do: a text begins with BOS, and control tokens are special.

    Raises:
        TokenizerError: there is no tokenizer that can be used.

    """
    for file in (*tokenizer_files(raw), *(raw / name for name in _SIDE_FILES)):
        if has_file(file, error=TokenizerError):
            target = folder / file.relative_to(raw)
            target.parent.mkdir(exist_ok=True)
            _copy(file, target)
    model = _find_model(raw)
    if model is None:
        tekken = read_tekken(raw / TEKKEN)
        return {f"{kind}_token_id": token for kind, token in tekken.special_ids.items()}
    settings = read_settings(model)
    _copy(model, folder / MODEL)
    pieces = open_model(folder / MODEL)
    ids = {
        f"{kind}_token_id": token
        for kind, token in (
            ("bos", pieces.bos_id()),
            ("eos", pieces.eos_id()),
            ("unk", pieces.unk_id()),
        )
        if token >= 0
    }
    added = _added(pieces, settings)
    documents = {"tokenizer_config.json": _settings(pieces, ids, added)}
    if (
        "bos_token_id" in ids
        and settings.byte_fallback
        and not (folder / "tokenizer.json").is_file()
    ):
        require_bpe(settings, model)
        _require_no_spaces(added, model)
        documents["tokenizer.json"] = _fast(pieces, added, prefix=settings.dummy_prefix)
    for name, content in documents.items():
        if not (folder / name).is_file():
            document = json.dumps(content, indent=2, ensure_ascii=False)
            replace_file(folder / name, f"{document}\n".encode())
    return ids


def _copy(file: Path, target: Path) -> None:
    with create(target) as copy:
        copy.write(read_file(file, error=TokenizerError))


def _find_model(raw: Path) -> Path | None:
    """tokenizer.model, or the latest of its numbered versions; None where there is a tekken.json.

    Raises:
        TokenizerError: there is no tokenizer.

    """
    if has_file(raw / TEKKEN, error=TokenizerError):
        return None
    if has_file(raw / MODEL, error=TokenizerError):
        return raw / MODEL
    numbered = {
        int(match[1]): file for file in raw.iterdir() if (match := _NUMBERED.fullmatch(file.name))
    }
    if numbered:
        return numbered[max(numbered)]
    raise TokenizerError(
        f"{raw} has neither tekken.json nor tokenizer.model; copy one from the release, whatever "
        "number it ends in."
    )


def _added(pieces: Any, settings: ModelSettings) -> list[dict[str, Any]]:
    """The tokens that no merge makes, as transformers describes added tokens.

    Those that stand for no text are special; user-defined symbols are text.
    """
    texts = [pieces.IdToPiece(token) for token in range(pieces.vocab_size())]
    defined = symbols(settings, texts)
    special = [pieces.IsControl(token) or pieces.IsUnknown(token) for token in range(len(texts))]
    return [
        {
            "id": token,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special[token],
        }
        for token, text in enumerate(texts)
        if special[token] or token in defined
    ]


def _require_no_spaces(added: list[dict[str, Any]], model: Path) -> None:
    for token in added:
        if WORD_BOUNDARY in token["content"] and not token["special"]:
            raise TokenizerError(
                f"{model} cuts {token['content']!r} out of a text, spaces included, which "
                "llama.cpp does not do; quantkit cannot convert this tokenizer."
            )


def _settings(pieces: Any, ids: dict[str, int], added: list[dict[str, Any]]) -> dict[str, Any]:
    """tokenizer_config.json."""
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in added
        },
        **{key.removesuffix("_id"): pieces.IdToPiece(token) for key, token in ids.items()},
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 10**30,
        "pad_token": None,
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer",
        "use_default_system_prompt": False,
    }


def _fast(pieces: Any, added: list[dict[str, Any]], *, prefix: bool) -> dict[str, Any]:
    """tokenizer.json: the same BPE for the tokenizers library."""
    bos = pieces.IdToPiece(pieces.bos_id())
    first, second = ({"SpecialToken": {"id": bos, "type_id": kind}} for kind in (0, 1))
    a, b = ({"Sequence": {"id": text, "type_id": kind}} for kind, text in enumerate("AB"))
    space = {"String": " "}, {"String": WORD_BOUNDARY}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                *([{"type": "Prepend", "prepend": WORD_BOUNDARY}] if prefix else []),
                {"type": "Replace", "pattern": space[0], "content": WORD_BOUNDARY},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, a],
            "pair": [first, a, second, b],
            "special_tokens": {bos: {"id": bos, "ids": [pieces.bos_id()], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": space[1], "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces.IdToPiece(pieces.unk_id()),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {pieces.IdToPiece(token): token for token in range(pieces.vocab_size())},
            "merges": _merges(pieces, {token["id"] for token in added}),
        },
    }


def _merges(pieces: Any, added: Collection[int]) -> list[list[str]]:
    """The merges of a BPE, best first: SentencePiece keeps only what they make, with a score.

    A piece can be made of several pairs. Among equal scores longer left parts come first, then
    longer right ones, as transformers orders them.
    """
    ids = {pieces.IdToPiece(token): token for token in range(pieces.vocab_size())}
    found = []
    for text, token in ids.items():
        if pieces.IsByte(token) or token in added:
            continue
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        pairs = [(left, right) for left, right in pairs if left in ids and right in ids]
        pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(pieces.GetScore(token), left, right) for left, right in pairs]
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [[left, right] for _, left, right in found]
