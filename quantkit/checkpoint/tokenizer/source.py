"""The tokenizer files of a checkpoint folder, read and checked once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from quantkit.checkpoint.folder import read_json
from quantkit.checkpoint.tokenizer.rebuilt import rebuild
from quantkit.core.documents import to_type
from quantkit.core.errors import TokenizerError
from quantkit.core.files import has_file
from quantkit.core.printable import quoted

MODEL, FAST, TEKKEN = "tokenizer.model", "tokenizer.json", "tekken.json"
# What tokenizer.model is called for T5, and for XLM-RoBERTa, which counts its pieces from 1.
SPIECE, FAIRSEQ = "spiece.model", "sentencepiece.bpe.model"

# Every file that may take part, in the order of the manifest.
TOKENIZER_FILES = (
    MODEL,
    FAST,
    TEKKEN,
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    SPIECE,
    FAIRSEQ,
)

# What transformers assumes for Llama, Mistral and Mixtral where config.json is silent.
_ASSUMED_VOCAB_SIZE = 32000


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """A folder's tokenizer files as JSON values; what is not there is empty."""

    folder: Path
    config: Mapping[str, Any]
    vocab_size: int
    settings: dict[str, Any]
    """tokenizer_config.json."""
    fast: dict[str, Any]
    """tokenizer.json."""
    added: dict[str, int]
    """added_tokens.json: ids by text."""
    decoder: dict[int, dict[str, Any]] | None
    """``added_tokens_decoder`` of tokenizer_config.json, where it has one: tokens by id."""
    special_map: dict[str, Any]
    """special_tokens_map.json."""
    model_file: Path | None
    """tokenizer.model."""
    tekken_file: Path | None = None
    """tekken.json, where it is the tokenizer that a GGUF's vocabulary is made of."""
    rebuilt: dict[str, Any] | None = None
    """What transformers takes in place of tokenizer.json, where that is something else."""

    @property
    def opened(self) -> dict[str, Any]:
        """tokenizer.json as transformers opens it, which says how texts are split."""
        return self.rebuilt or self.fast

    @property
    def named(self) -> dict[str, Any]:
        """tokenizer_config.json, with what older versions left in special_tokens_map.json."""
        settings = dict(self.settings)
        if self.decoder is not None:
            return settings
        for key, value in self.special_map.items():
            known = settings.get(key)
            if key == "additional_special_tokens" and isinstance(value, list):
                known = known if isinstance(known, list) else []
                settings[key] = [*known, *(token for token in value if token not in known)]
            else:
                settings[key] = value
        return settings

    @property
    def fast_file(self) -> Path:
        """Where tokenizer.json lies."""
        return self.folder / FAST


def vocabulary_files(folder: Path) -> tuple[str, ...]:
    """The tokenizers in a folder: first the one that a GGUF's vocabulary is made of.

    Of a tokenizer.model beside a tokenizer.json the scores may be used. The order is that of
    llama.cpp's converter.
    """
    found = tuple(name for name in (FAST, TEKKEN, MODEL) if has_tokenizer_file(folder / name))
    return found or unigram_files(folder)[:1]


def unigram_files(folder: Path) -> tuple[str, ...]:
    """The SentencePiece models in a folder that llama.cpp's converter takes first for T5's kind."""
    return tuple(name for name in (MODEL, SPIECE, FAIRSEQ) if has_tokenizer_file(folder / name))


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The files of a checkpoint that make its tokenizer and its chat template."""
    found = [folder / name for name in TOKENIZER_FILES if has_tokenizer_file(folder / name)]
    return (*found, *extra_templates(folder))


def has_tokenizer_file(path: Path) -> bool:
    """Whether a file is there. What is there and cannot be read is no absent tokenizer.

    Raises:
        TokenizerError: it is a link that leads nowhere, a folder or a pipe.

    """
    return has_file(path, error=TokenizerError)


def extra_templates(folder: Path) -> tuple[Path, ...]:
    """The named chat templates that lie in files of their own."""
    return tuple(sorted((folder / "additional_chat_templates").glob("*.jinja")))


def read_source(folder: Path, config: Mapping[str, Any]) -> TokenizerSource:
    """Read a folder's tokenizer files and check what is used of them.

    Raises:
        TokenizerError: there is no tokenizer, or a file is not laid out as transformers does it.
        CheckpointError: a file is not JSON.

    """
    files = vocabulary_files(folder)
    _require_tokenizer(folder, files)
    settings = _optional(folder, "tokenizer_config.json")
    fast = _read_fast(folder)
    return TokenizerSource(
        folder=folder,
        config=config,
        vocab_size=_vocab_size(config),
        settings=settings,
        fast=fast,
        added=_read_added(folder),
        decoder=_read_decoder(folder, settings),
        special_map=_optional(folder, "special_tokens_map.json"),
        model_file=_model_file(folder, files),
        tekken_file=folder / TEKKEN if files[0] == TEKKEN else None,
        rebuilt=rebuild(fast, settings, config) if fast else None,
    )


def _model_file(folder: Path, files: Sequence[str]) -> Path | None:
    return next((folder / name for name in files if name in (MODEL, SPIECE, FAIRSEQ)), None)


def _require_tokenizer(folder: Path, files: Sequence[str]) -> None:
    if not files:
        raise TokenizerError(
            f"{folder} has no tokenizer: looked for {MODEL}, {FAST}, {TEKKEN}; copy one from the "
            "original model, or save it with transformers if only vocab.json is there."
        )


def _vocab_size(config: Mapping[str, Any]) -> int:
    size = config.get("vocab_size")
    if size is None:
        return _ASSUMED_VOCAB_SIZE
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise TokenizerError(
            f"config.json says vocab_size = {quoted(size)}; it must be a whole number above 0."
        )
    return size


def _optional(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object, empty where the file is not there."""
    return read_json(folder / name) if has_tokenizer_file(folder / name) else {}


_Object = dict[str, Any]
_Parts = list[dict[str, _Object]] | None
_Id = Annotated[int, msgspec.Meta(ge=0)]


class _Token(msgspec.Struct, frozen=True):
    """What an added token must have; its flags are looked at where they matter."""

    content: str


class _NumberedToken(_Token, frozen=True):
    id: int


class _Processor(msgspec.Struct, frozen=True):
    """A step of the post-processor, or a sequence of them; null is an empty template."""

    single: _Parts = None
    pair: _Parts = None
    processors: list["_Processor"] = []


class _Fast(msgspec.Struct, frozen=True):
    """The form of tokenizer.json, as far as every reader of it relies on it."""

    model: _Object
    normalizer: _Object | None = None
    pre_tokenizer: _Object | None = None
    post_processor: _Processor | None = None
    decoder: _Object | None = None
    added_tokens: list[_NumberedToken] | None = None


def _read_fast(folder: Path) -> dict[str, Any]:
    path = folder / FAST
    if not has_tokenizer_file(path):
        return {}
    fast = read_json(path)
    _require_form(fast, _Fast, path)
    fast["added_tokens"] = fast.get("added_tokens") or []
    return fast


def _require_form(value: Any, kind: Any, name: object) -> None:
    """Check values that stay as they are: others read more of them than what is checked here."""
    to_type(value, kind, name, error=TokenizerError)


def post_processors(fast: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps of tokenizer.json's post-processor."""
    whole = fast.get("post_processor") or {}
    processors: list[dict[str, Any]] = whole.get("processors", [whole])
    return processors


def steps(part: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a part of tokenizer.json that is one step or a nested sequence of them.

    Args:
        part: ``normalizer`` or ``pre_tokenizer``; null has no steps.
        key: under which a sequence lists its steps.

    """
    if not part:
        return []
    if isinstance(part.get(key), list):
        return [step for inner in part[key] for step in steps(inner, key)]
    return [part]


def _read_added(folder: Path) -> dict[str, int]:
    added = _optional(folder, "added_tokens.json")
    _require_form(added, dict[str, _Id], folder / "added_tokens.json")
    return added


def _read_decoder(folder: Path, settings: dict[str, Any]) -> dict[int, dict[str, Any]] | None:
    if "added_tokens_decoder" not in settings:
        return None
    path = folder / "tokenizer_config.json"
    decoder = settings["added_tokens_decoder"]
    _require_form(decoder, dict[str, _Token], f"added_tokens_decoder of {path}")
    for token_id in decoder:
        if not token_id.isdecimal():
            raise TokenizerError(
                f"{path} has an added token with the id {quoted(token_id)}; download it again."
            )
    return {int(token_id): token for token_id, token in decoder.items()}
