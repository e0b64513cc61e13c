"""What llama.cpp told of a header, kept in the user's cache: the same question, the same answer.

Of a dry run, everything but whether there is memory for it depends on three things alone: the
files' headers and lengths, the settings, and the library. All of them are in the key.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from quantkit.core.documents import decode
from quantkit.core.errors import FileError, QuantkitError
from quantkit.core.files import read_if_there
from quantkit.core.system import user_cache
from quantkit.core.writing import replace_file
from quantkit.verification.hollow import HeaderOnly

_FORM = 1  # another number makes old answers useless
_MOST = 500  # answers, of some kilobytes each


class _Context(msgspec.Struct, frozen=True):
    buffers: list[tuple[str, str, float]]
    memory: list[tuple[str, float, int, list[int]]]


class _Told(msgspec.Struct, frozen=True):
    """What ``verify.buffers.buffers`` returns."""

    gpu: bool
    use: str
    whole_texts: bool
    unused: list[str]
    contexts: list[_Context]


def recall(
    files: Sequence[HeaderOnly], settings: Mapping[str, Any], ask: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What ``ask`` tells, or told of the same before.

    Args:
        files: what is asked about.
        settings: in which way.
        ask: asks llama.cpp in a dry run, without GPUs.

    Raises:
        QuantkitError: whatever ``ask`` raises; nothing of that is kept.

    """
    library = _library()
    if library is None:
        return ask()
    file = _folder() / f"{_key(files, settings, library)}.json"
    with suppress(QuantkitError):
        raw = read_if_there(file, error=FileError)
        if raw is not None:
            told = decode(raw, _Told, file)
            if len(told.contexts) == len(settings["ladder"]):
                found: dict[str, Any] = msgspec.to_builtins(told)
                return found
    answer = ask()
    with suppress(QuantkitError, OSError):  # a cache that cannot be written is none
        file.parent.mkdir(parents=True, exist_ok=True)
        _make_room(file.parent)
        replace_file(file, json.dumps(answer).encode(), file.with_suffix(f".{os.getpid()}"))
    return answer


def _folder() -> Path:
    return user_cache() / "fit"


def _make_room(folder: Path) -> None:
    kept = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
    for file in kept[: max(0, len(kept) - _MOST + 1)]:
        file.unlink(missing_ok=True)


def _key(files: Sequence[HeaderOnly], settings: Mapping[str, Any], library: Sequence[str]) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([_FORM, settings, library], sort_keys=True).encode())
    for file in files:
        digest.update(f"\n{file.n_bytes} {len(file.header)}\n".encode())
        digest.update(file.header)
    return digest.hexdigest()


def _library() -> list[str] | None:
    """What tells one build of llama.cpp from another; None where there is none to be found."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = os.environ.get("LLAMA_CPP_LIB_PATH")
    place = Path(folder) if folder else Path(spec.submodule_search_locations[0]) / "lib"
    try:
        states = [(file.name, file.stat()) for file in sorted(place.iterdir())]
    except OSError:
        return None
    return [f"{place}/{name} {state.st_size} {state.st_mtime_ns}" for name, state in states]
