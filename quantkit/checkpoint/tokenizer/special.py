"""Which tokens are special, whether llama.cpp adds them itself, and the chat template.

Follows ``SpecialVocab`` in ``gguf-py/gguf/vocab.py`` of the pinned llama.cpp, whose rules differ
from those of the gguf package.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from quantkit.checkpoint.tokenizer.chat_template import template_metadata
from quantkit.checkpoint.tokenizer.source import TokenizerSource, post_processors
from quantkit.checkpoint.tokenizer.vocabulary import SPECIAL_KINDS, Metadata

# The kinds that GGUF has a key for; "seperator" is spelled so in the format.
_ID_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}
_ADD_KEYS = {kind: f"tokenizer.ggml.add_{kind}_token" for kind in ("bos", "eos", "sep")}

_IDS = 2**32  # GGUF's ids have 32 bits


def special_metadata(
    source: TokenizerSource,
    *,
    kinds: Iterable[str] = SPECIAL_KINDS,
    ids: Mapping[str, int] | None = None,
    n_vocab: int | None = None,
) -> Metadata:
    """The keys of special tokens, chat template and normalizer, in the converter's order.

    Args:
        source: the tokenizer files.
        kinds: kinds of special tokens to look for.
        ids: ids to assume for kinds that no file names.
        n_vocab: ids from here on are ignored.

    """
    settings, adds = dict(source.settings), dict[str, bool]()
    found: dict[str, int] = {}
    if source.fast:
        extended = list(kinds)
        _read_post_processor(source.fast, settings, extended, adds)
        kinds = extended if source.settings else kinds
    if source.settings:
        for kind in kinds:
            flag = settings.get(f"add_{kind}_token")
            if isinstance(flag, bool):
                adds.setdefault(kind, flag)  # what the post-processor does counts
        named = {kind: _id_of(settings.get(f"{kind}_token"), source.fast) for kind in kinds}
        _collect(found, named, n_vocab)
    _collect(found, {kind: _configured_id(source.config, kind) for kind in kinds}, n_vocab)
    _collect(found, ids or {}, n_vocab)
    metadata: Metadata = {_ID_KEYS[k]: i for k, i in found.items() if k in _ID_KEYS}
    metadata |= {_ADD_KEYS[kind]: flag for kind, flag in adds.items() if kind in _ADD_KEYS}
    metadata |= template_metadata(source)
    return metadata | _normalizer_metadata(source.fast.get("normalizer"))


def _collect(found: dict[str, int], ids: Mapping[str, Any], n_vocab: int | None) -> None:
    """Take ids of kinds that have none yet. Those of no token, such as -1, stand for none."""
    for kind, token_id in ids.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            continue
        if 0 <= token_id < (_IDS if n_vocab is None else n_vocab):
            found.setdefault(kind, token_id)


def _id_of(token: Any, fast: Mapping[str, Any]) -> int | None:
    """The id of a token, a text or an object with one, among the added tokens."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        return None
    added = fast.get("added_tokens", [])
    return next((entry["id"] for entry in added if entry["content"] == text), None)


def _configured_id(config: Mapping[str, Any], kind: str) -> Any:
    key = f"{kind}_token_id"
    token_id = config.get(key)
    if token_id is None and isinstance(config.get("text_config"), Mapping):
        token_id = config["text_config"].get(key)
    return token_id


def _read_post_processor(
    fast: Mapping[str, Any], settings: dict[str, Any], kinds: list[str], adds: dict[str, bool]
) -> None:
    """Read off tokenizer.json what surrounds a text, and correct the settings by it."""
    for role, substitute in (("bos_token", "cls_token"), ("eos_token", "sep_token")):
        if not settings.get(role) and settings.get(substitute):
            settings[role] = settings[substitute]
    for step in post_processors(fast):
        match step:
            case {"type": "ByteLevel"}:
                adds.setdefault("bos", False)
                adds.setdefault("eos", False)
            case {"type": "RobertaProcessing"}:
                adds.update(bos=True, eos=True, sep=True)
                for role, assumed in (("cls", "bos_token"), ("sep", "eos_token")):
                    if not settings.get(f"{role}_token"):
                        pair = step.get(role) or [settings.get(assumed)]
                        settings[f"{role}_token"] = pair[0]
            case {"type": "TemplateProcessing"}:
                _read_template(step, settings, kinds, adds)


def _read_template(
    step: Mapping[str, Any], settings: dict[str, Any], kinds: list[str], adds: dict[str, bool]
) -> None:
    """Read a template for one text (``single``) and one for two (``pair``)."""
    single, pair = step.get("single") or [], step.get("pair") or []
    first, last = (_token(single[0]), _token(single[-1])) if len(single) > 1 else (None, None)
    if first:
        openers = ("bos_token", "cls_token")
        if first not in [settings.get(role) for role in openers]:
            settings.update({role: first for role in openers if not settings.get(role)})
        adds["bos"] = first in [settings.get(role) for role in openers]
    if last:
        if last != settings.get("eos_token"):
            # What the settings call the end of a text must then be the end of a turn.
            unused = next((kind for kind in ("eot", "eom") if kind not in kinds), None)
            if unused:
                kinds.append(unused)
                settings[f"{unused}_token"] = settings.get("eos_token")
            settings["eos_token"] = last
        adds["eos"] = True
    separators = [settings.get("sep_token"), settings.get("eos_token")]
    adds_separator = _adds_separator(pair, first, last, separators)
    if adds_separator is not None:
        adds["sep"] = adds_separator
        if adds_separator and not settings.get("sep_token"):
            settings["sep_token"] = settings.get("eos_token")


def _adds_separator(
    pair: list[dict[str, Any]], first: str | None, last: str | None, separators: Collection[Any]
) -> bool | None:
    """Whether two texts are parted by a separator; None where nothing is between them."""
    inner = pair
    if pair and first and _token(pair[0]) == first:
        inner = inner[1:]
    if pair and last and _token(pair[-1]) == last:
        inner = inner[:-1]
    if not inner or _sequence(inner[0]) != "A" or _sequence(inner[-1]) != "B":
        return None
    between = [_token(piece) for piece in inner[1:-1]]
    if not between:
        return None
    # With an end-of-sequence token after the first text, that token is no separator.
    opens = bool(between[0]) and between[0] in separators and not last
    closes = len(between) == 2 and bool(between[1]) and between[1] in separators
    return opens or closes


def _token(piece: Mapping[str, Any]) -> Any:
    return piece.get("SpecialToken", {}).get("id")


def _sequence(piece: Mapping[str, Any]) -> Any:
    return piece.get("Sequence", {}).get("id")


def _normalizer_metadata(normalizer: Any) -> Metadata:
    """The keys for lower-casing and accent-stripping, where the normalizer says so."""
    flags: dict[str, Any] = {}
    _read_normalizer(normalizer, flags)
    return {
        f"tokenizer.ggml.normalizer.{name}": bool(flags[name])
        for name in ("lowercase", "strip_accents")
        if flags.get(name) is not None
    }


def _read_normalizer(step: Any, flags: dict[str, Any]) -> None:
    match step:
        case {"type": "Lowercase"}:
            flags["lowercase"] = True
        case {"type": "StripAccents"}:
            flags["strip_accents"] = True
        case {"type": "BertNormalizer"}:
            flags.update({k: step[k] for k in ("lowercase", "strip_accents") if k in step})
        case {"type": "Sequence", "normalizers": [*inner]}:
            for part in inner:
                _read_normalizer(part, flags)
