"""``tokenizer.json`` as transformers opens it, without transformers.

The converter asks transformers' AutoTokenizer, which changes what tokenizer.json says: special
tokens named elsewhere are added, flags in tokenizer_config.json win, and some tokenizer classes put
the beginning-of-sequence token in front themselves. Source: ``tokenization_utils_base.py`` and
``tokenization_utils_fast.py`` of transformers 4.57.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint.tokenizer.source import TokenizerSource
from quantkit.checkpoint.tokenizer.vocabulary import SPECIAL_KINDS, token_text
from quantkit.core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_ROLES = tuple(f"{kind}_token" for kind in SPECIAL_KINDS)
_EXTRA_ROLE = "additional_special_tokens"

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

# What decoding tidies up where tokenizer_config.json says clean_up_tokenization_spaces, in order.
_TIDIED = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


@dataclass(frozen=True, slots=True)
class _TokenizerClass:
    """What a tokenizer class of transformers assumes where tokenizer_config.json is silent."""

    roles: Mapping[str, str | None] = field(default_factory=dict)
    infill: Mapping[str, str] = field(default_factory=dict)
    """Further special tokens, each under its own key."""
    frames: bool = False
    """Whether the class itself says what surrounds a text, whatever tokenizer.json says."""
    adds_bos: bool = False
    prefix_space: bool | None = False


_LLAMA_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_GPT2_ROLES = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_CODE_LLAMA_INFILL = {
    "prefix_token": "\u2581<PRE>",
    "middle_token": "\u2581<MID>",
    "suffix_token": "\u2581<SUF>",
    "eot_token": "\u2581<EOT>",
}
_QWEN2_ROLES = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")

_LLAMA = _TokenizerClass(_LLAMA_ROLES, frames=True, adds_bos=True, prefix_space=None)

_CLASSES = {
    "LlamaTokenizer": _LLAMA,
    "CodeLlamaTokenizer": replace(_LLAMA, infill=_CODE_LLAMA_INFILL),
    "GPT2Tokenizer": _TokenizerClass(_GPT2_ROLES),
    "GPTNeoXTokenizer": _TokenizerClass({**_GPT2_ROLES, "pad_token": None}, frames=True),
    "Qwen2Tokenizer": _TokenizerClass(_QWEN2_ROLES),
}
_DEFAULT_CLASS = "LlamaTokenizer"  # of the model types llama, mistral and mixtral


@dataclass(frozen=True, slots=True)
class FastTokenizer:
    """An opened tokenizer.json."""

    backend: "Tokenizer"
    ids: Mapping[str, int]
    """Every token's id by its text, added tokens included."""
    base_size: int
    """How many of the tokens are the model's own."""
    added: Mapping[int, "AddedToken"]
    specials: tuple[str, ...]
    """Texts of the special tokens."""
    pre_tokenizer: Mapping[str, Any]
    """As in tokenizer.json, which tokenizer_config.json may have changed."""
    frame: tuple[list[int], list[int]] | None
    """Ids before and after every text, where the class sets them; else tokenizer.json does."""
    tidies: bool

    def texts_by_id(self) -> dict[int, str]:
        """Every token's text by its id."""
        return {token_id: text for text, token_id in self.ids.items()}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that surround it."""
        if self.frame is None:
            return self.backend.encode(text).ids
        before, after = self.frame
        return [*before, *self.backend.encode(text, add_special_tokens=False).ids, *after]

    def round_trip(self, text: str) -> str:
        """The text that encoding and decoding leaves."""
        ids = self.backend.encode(text, add_special_tokens=False).ids
        decoded = self.backend.decode(ids, skip_special_tokens=False)
        if self.tidies:
            for untidy, tidy in _TIDIED:
                decoded = decoded.replace(untidy, tidy)
        return decoded


def open_tokenizer(source: TokenizerSource) -> FastTokenizer:
    """Open a folder's tokenizer.json.

    Raises:
        TokenizerError: the tokenizers package cannot read it.

    """
    backend = _load(source)
    settings = _settings(source)
    kind = _CLASSES.get(_class_name(source), _TokenizerClass())
    roles = _roles(settings, kind, backend.padding)
    specials = tuple(dict.fromkeys(token_text(token) for token in roles))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(settings.get("split_special_tokens"))
    _add_tokens(backend, _known_tokens(source, specials), roles, set(specials))
    pre_tokenizer = _set_prefix_space(backend, source, kind)
    ids = backend.get_vocab(with_added_tokens=True)
    return FastTokenizer(
        backend=backend,
        ids=ids,
        base_size=backend.get_vocab_size(with_added_tokens=False),
        added=backend.get_added_tokens_decoder(),
        specials=specials,
        pre_tokenizer=pre_tokenizer,
        frame=_frame(settings, kind, ids) if kind.frames else None,
        tidies=bool(settings.get("clean_up_tokenization_spaces")),
    )


def _load(source: TokenizerSource) -> "Tokenizer":
    from tokenizers import Tokenizer

    path = source.fast_file
    try:
        with _silent_stderr():  # a panic writes a page of stack there
            if source.rebuilt:
                return Tokenizer.from_str(json.dumps(source.rebuilt))
            return Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of Rust is no Exception
        reason = " ".join(str(error).split())
        raise TokenizerError(
            f"{path} is no tokenizer that the tokenizers package reads ({reason}); "
            "download it again, or update tokenizers."
        ) from None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep what is written to file descriptor 2 from the user."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def require_room(source: TokenizerSource, by_id: Mapping[int, str]) -> None:
    """Check that every token has a row in the embeddings.

    Raises:
        TokenizerError: a token's id is beyond the vocabulary size.

    """
    last = max(by_id, default=0)
    if last >= source.vocab_size:
        raise TokenizerError(
            f"{source.folder} has the token {by_id[last]!r} with id {last}, but config.json says "
            f"vocab_size = {source.vocab_size}; copy the tokenizer files and config.json of one "
            "model."
        )


def _settings(source: TokenizerSource) -> dict[str, Any]:
    """tokenizer_config.json, with what an older transformers left in special_tokens_map.json."""
    settings = dict(source.settings)
    if source.decoder is not None:
        return settings
    for key, value in source.special_map.items():
        if key == _EXTRA_ROLE and isinstance(value, list):
            known = _listed(settings.get(key))
            settings[key] = [*known, *(token for token in value if token not in known)]
        else:
            settings[key] = value
    return settings


def _class_name(source: TokenizerSource) -> str:
    name = source.settings.get("tokenizer_class") or source.config.get("tokenizer_class")
    return str(name or _DEFAULT_CLASS).removesuffix("Fast")


def _roles(
    settings: Mapping[str, Any], kind: _TokenizerClass, padding: Mapping[str, Any] | None
) -> list[Any]:
    """The special tokens, each a text or an object with flags; a token may come twice."""
    assumed = {**({"pad_token": padding["pad_token"]} if padding else {}), **kind.roles}
    tokens = [settings.get(role, assumed.get(role)) for role in _ROLES]
    tokens += _listed(settings.get(_EXTRA_ROLE))
    tokens += [settings.get(key, text) for key, text in kind.infill.items()]
    extra = settings.get("extra_special_tokens")
    tokens += _listed(list(extra.values()) if isinstance(extra, dict) else extra)
    return [token for token in tokens if isinstance(token_text(token), str) and token_text(token)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _known_tokens(source: TokenizerSource, specials: Iterable[str]) -> dict[int, dict[str, Any]]:
    """Added tokens by id that the files beside tokenizer.json name, with their flags."""
    if source.decoder is not None:
        return source.decoder
    legacy = {
        i: {"content": text, "special": text in specials, "normalized": text not in specials}
        for text, i in source.added.items()
    }
    return legacy | {token["id"]: token for token in source.fast["added_tokens"]}


def _add_tokens(
    backend: "Tokenizer",
    known: Mapping[int, Mapping[str, Any]],
    roles: Iterable[Any],
    specials: set[str],
) -> None:
    """Add what is not there yet, and give what is there the flags that transformers gives it."""
    from tokenizers import AddedToken

    def build(token: Mapping[str, Any]) -> AddedToken:
        flags = {name: bool(token[name]) for name in _FLAGS if name in token}
        added = AddedToken(token["content"], **flags)
        added.special = added.special or token["content"] in specials
        return added

    tokens = [build(token) for _, token in sorted(known.items())]
    there = {token["content"] for token in known.values()}
    there |= {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in roles:
        if token_text(token) not in there:
            flags = token if isinstance(token, dict) else {}
            tokens.append(build({"special": True, **flags, "content": token_text(token)}))
            there.add(token_text(token))
    backend.add_tokens(tokens)


def _set_prefix_space(
    backend: "Tokenizer", source: TokenizerSource, kind: _TokenizerClass
) -> Mapping[str, Any]:
    """Let tokenizer_config.json, not tokenizer.json, say whether a text starts with a space.

    Returns the pre-tokenizer that results.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    state = source.opened.get("pre_tokenizer") or {}
    wanted = source.settings.get("add_prefix_space", kind.prefix_space)
    if state.get("type") != "ByteLevel" or not isinstance(wanted, bool):
        return state
    backend.pre_tokenizer = ByteLevel(
        add_prefix_space=wanted,
        trim_offsets=state.get("trim_offsets", True),
        use_regex=state.get("use_regex", True),
    )
    return {**state, "add_prefix_space": wanted}


def _frame(
    settings: Mapping[str, Any], kind: _TokenizerClass, ids: Mapping[str, int]
) -> tuple[list[int], list[int]]:
    def token(role: str) -> list[int]:
        text = token_text(settings.get(role, kind.roles.get(role)))
        return [ids[text]] if isinstance(text, str) and text in ids else []

    adds_bos = settings.get("add_bos_token", kind.adds_bos)
    return (
        token("bos_token") if adds_bos else [],
        token("eos_token") if settings.get("add_eos_token", False) else [],
    )
