"""transformers' own tokenizers in the converter's process, without code that came with a model.

The converter asks ``AutoTokenizer`` with ``trust_remote_code=True``, or without saying, which asks
a person. Neither happens here: where transformers has the class it takes that, and where it does
not, ``tokenizer.json`` says all that the class could (see `forbid_code`).
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from quantkit.checkpoint.converter.confined import RefusedError
from quantkit.checkpoint.tokenizer import add_keys
from quantkit.checkpoint.tokenizer.source import TEKKEN, read_source
from quantkit.checkpoint.tokenizer.tekken import tekken_metadata
from quantkit.core.errors import CheckpointError

_LOADER, _ASKER = "get_class_from_dynamic_module", "resolve_trust_remote_code"
_SETTINGS, _FAST = "tokenizer_config.json", "tokenizer.json"
_VOCABULARIES = ("*.model", "vocab.*", "*_vocab_*", "*.tiktoken", "tekken.json")
_PROBES = ("a", "Hello, world!")


def forbid_code() -> None:
    """Let transformers load no code that came with a model, and ask nobody whether it may.

    It lasts as long as this process: whoever imports these functions later gets ours as well.
    """
    for module in [m for name, m in sys.modules.items() if name.startswith("transformers.")]:
        if _LOADER in vars(module):
            setattr(module, _LOADER, _refuse_code)
        if _ASKER in vars(module):
            setattr(module, _ASKER, _trust_nothing)
    AutoTokenizer.from_pretrained = _opener(AutoTokenizer.from_pretrained)


def _refuse_code(reference: str, *_: Any, **__: Any) -> Any:
    raise RefusedError(f"code:{reference}")


def _trust_nothing(*_: Any, **__: Any) -> bool:
    return False


def _opener(real: Callable[..., Any]) -> Callable[..., Any]:
    """``AutoTokenizer.from_pretrained``, which takes tokenizer.json where code is wanted."""

    def from_pretrained(folder: Any, *arguments: Any, **wishes: Any) -> Any:
        settings = _settings(Path(folder))
        wishes = {**wishes, **_as_before(settings), "trust_remote_code": False}
        try:
            return real(folder, *arguments, **wishes)
        except (ValueError, KeyError, ImportError, OSError, AttributeError, TypeError):
            # The class is the model's own, of a later transformers, or lacks its file.
            if (Path(folder) / _FAST).is_file():
                return PreTrainedTokenizerFast.from_pretrained(folder, *arguments, **wishes)
            if code := _wanted_code(settings) or _wanted_code(_read(Path(folder), "config.json")):
                raise RefusedError(f"code:{code}") from None
            if not any(any(Path(folder).glob(pattern)) for pattern in _VOCABULARIES):
                raise RefusedError("it has no tokenizer") from None
            raise

    return from_pretrained


def _as_before(settings: dict[str, Any]) -> dict[str, Any]:
    """What transformers 5 saves in a form that 4 stumbles over, in the older one."""
    extra = settings.get("extra_special_tokens")
    if not isinstance(extra, list):
        return {}
    return {"extra_special_tokens": {}, "additional_special_tokens": extra}


def _wanted_code(settings: dict[str, Any]) -> str:
    """The class of its own that a model names for its tokenizer, empty if none."""
    classes = settings.get("auto_map")
    found = classes.get("AutoTokenizer") if isinstance(classes, dict) else classes
    names = found if isinstance(found, list) else [found]
    return next((name for name in names if isinstance(name, str)), "")


def _settings(folder: Path) -> dict[str, Any]:
    return _read(folder, _SETTINGS)


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def vocabularies() -> Iterator[tuple[Any, str, Any]]:
    """What stands in for steps that want other libraries: (owner, attribute, value) each."""
    from conversion.base import TextModel

    yield TextModel, "_set_vocab_mistral", _set_vocab_of_tekken
    try:
        from conversion.hunyuan import HunYuanMoEModel
    except ImportError:
        return
    ranked = HunYuanMoEModel.set_vocab

    def set_vocab(self: Any) -> None:
        """Of a tokenizer.json the vocabulary is there; the ranks of which it is made are not."""
        has_fast = (self.dir_model / _FAST).is_file()
        self._set_vocab_gpt2() if has_fast else ranked(self)

    yield HunYuanMoEModel, "set_vocab", set_vocab


def _set_vocab_of_tekken(model: Any) -> None:
    """Of a ``tekken.json`` alone the converter wants mistral-common; quantkit reads it itself."""
    folder = Path(model.dir_model)
    try:
        keys = tekken_metadata(read_source(folder, model.hparams), folder / TEKKEN)
    except CheckpointError as error:
        raise RefusedError(f"tokenizer:{error}".replace(f"{folder}/", "")) from None
    add_keys(model.gguf_writer, keys)


def tell(folder: Path, *, whole: bool) -> dict[str, Any]:
    """A folder's tokenizer as this transformers opens it.

    Returns:
        ``class``: of what class it is; ``fast``: as a tokenizer.json, None where it is none of the
        tokenizers library's or not ``whole``; ``before`` and ``after``: the ids that surround every
        text, None where it does something else with one.

    Raises:
        RefusedError: only code that came with the model opens it.

    """
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    is_fast = isinstance(tokenizer, transformers.PreTrainedTokenizerFast)
    frames = [_frame(tokenizer, text) for text in _PROBES]
    frame = frames[0] if frames.count(frames[0]) == len(frames) else None
    return {
        "class": type(tokenizer).__name__,
        "fast": tokenizer.backend_tokenizer.to_str() if is_fast and whole else None,
        "before": frame[0] if frame else None,
        "after": frame[1] if frame else None,
    }


def _frame(tokenizer: Any, text: str) -> tuple[list[int], list[int]] | None:
    whole = tokenizer.encode(text)
    bare = tokenizer.encode(text, add_special_tokens=False)
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return None
