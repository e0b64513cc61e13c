"""``tokenizer.json`` as transformers opens it, without transformers.

AutoTokenizer changes what tokenizer.json says: special tokens named elsewhere are added, and some
flags in tokenizer_config.json win. Source: ``tokenization_utils_base.py`` and
``tokenization_utils_tokenizers.py`` of transformers 5.23.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint.tokenizer.frame import Frame, frame_by_flags, post_processed
from quantkit.checkpoint.tokenizer.rebuilt import class_name
from quantkit.checkpoint.tokenizer.source import TokenizerSource
from quantkit.checkpoint.tokenizer.vocabulary import SPECIAL_KINDS, token_text
from quantkit.core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_ROLES = tuple(f"{kind}_token" for kind in SPECIAL_KINDS)
_EXTRA_ROLE = "additional_special_tokens"

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class TokenizerClass:
    """What a tokenizer class of transformers assumes where tokenizer_config.json is silent."""

    roles: Mapping[str, str | None] = field(default_factory=dict)
    infill: Mapping[str, str] = field(default_factory=dict)
    """Further special tokens, each under its own key."""
    post_processes: bool = True
    """Whether the post-processor of tokenizer.json says what surrounds a text, or the class."""
    adds_bos: bool = False
    prefix_space: bool | None = False

    @property
    def assumed(self) -> dict[str, Any]:
        """Special tokens and flags where the settings have no such key."""
        return {**self.roles, "add_bos_token": self.adds_bos}


_LLAMA_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_GPT2_ROLES = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_CODE_LLAMA_INFILL = {
    "prefix_token": "\u2581<PRE>",
    "middle_token": "\u2581<MID>",
    "suffix_token": "\u2581<SUF>",
    "eot_token": "\u2581<EOT>",
}
_QWEN2_ROLES = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")

_LLAMA = TokenizerClass(_LLAMA_ROLES, prefix_space=None)

_CLASSES = {
    "LlamaTokenizer": _LLAMA,
    "CodeLlamaTokenizer": replace(
        _LLAMA, infill=_CODE_LLAMA_INFILL, post_processes=False, adds_bos=True
    ),
    "GPT2Tokenizer": TokenizerClass(_GPT2_ROLES),
    "GPTNeoXTokenizer": TokenizerClass({**_GPT2_ROLES, "pad_token": None}, post_processes=False),
    "Qwen2Tokenizer": TokenizerClass(_QWEN2_ROLES),
}


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
    frame: Frame
    """What surrounds every text."""

    def texts_by_id(self) -> dict[int, str]:
        """Every token's text by its id."""
        return {token_id: text for text, token_id in self.ids.items()}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that surround it."""
        return self.frame.around(self.backend.encode(text, add_special_tokens=False).ids)


def open_tokenizer(source: TokenizerSource) -> FastTokenizer:
    """Open a folder's tokenizer.json.

    Raises:
        TokenizerError: the tokenizers package cannot read it.

    """
    backend = _load(source)
    settings = source.named
    kind = tokenizer_class(source)
    roles = _roles(settings, kind, backend.padding)
    specials = tuple(dict.fromkeys(token_text(token) for token in roles))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(settings.get("split_special_tokens"))
    _add_tokens(backend, source, roles, set(specials))
    pre_tokenizer = _set_prefix_space(backend, source, kind)
    ids = backend.get_vocab(with_added_tokens=True)
    return FastTokenizer(
        backend=backend,
        ids=ids,
        base_size=backend.get_vocab_size(with_added_tokens=False),
        added=backend.get_added_tokens_decoder(),
        specials=specials,
        pre_tokenizer=pre_tokenizer,
        frame=_frame(backend, source, kind, ids),
    )


def tokenizer_class(source: TokenizerSource) -> TokenizerClass:
    """The class that transformers opens a folder's tokenizer with."""
    name = class_name(source.fast, source.settings, source.config)
    return _CLASSES.get(name, TokenizerClass())


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


def _roles(
    settings: Mapping[str, Any], kind: TokenizerClass, padding: Mapping[str, Any] | None
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
    backend: "Tokenizer", source: TokenizerSource, roles: Iterable[Any], specials: set[str]
) -> None:
    """Add what is not there yet, and give what is there the flags that transformers gives it.

    A special token that is only named, and for which the model has no row, is none: its id would
    be beyond the embeddings.
    """
    from tokenizers import AddedToken

    def build(token: Mapping[str, Any]) -> AddedToken:
        flags = {name: bool(token[name]) for name in _FLAGS if name in token}
        added = AddedToken(token["content"], **flags)
        added.special = added.special or token["content"] in specials
        return added

    known = _known_tokens(source, specials)
    backend.add_tokens([build(token) for _, token in sorted(known.items())])
    for token in roles:
        there = backend.get_added_tokens_decoder()
        text = token_text(token)
        if text in {added.content for added in there.values()}:
            continue
        new_id = max(backend.get_vocab_size(with_added_tokens=False), *(i + 1 for i in there), 0)
        if backend.token_to_id(text) is not None or new_id < source.vocab_size:
            flags = token if isinstance(token, dict) else {}
            backend.add_tokens([build({"special": True, **flags, "content": text})])


def _set_prefix_space(
    backend: "Tokenizer", source: TokenizerSource, kind: TokenizerClass
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
    backend: "Tokenizer", source: TokenizerSource, kind: TokenizerClass, ids: Mapping[str, int]
) -> Frame:
    if not kind.post_processes:
        flags = ("add_bos_token", "add_eos_token")
        settings = {key: value for key, value in source.named.items() if key not in flags}
        return frame_by_flags(settings, kind.assumed, ids, source.folder)
    return post_processed(backend, source)
