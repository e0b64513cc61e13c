"""What sources and their files are called: weight files, indexes, shards, repositories."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar
from urllib.parse import unquote

from quantkit.core.errors import GGUFError

AnyPath = TypeVar("AnyPath", bound=PurePath)

LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")
INDEX = "model.safetensors.index.json"
PICKLED = ".bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
WHOLE = ("model.safetensors", "pytorch_model.bin")  # each is a model by itself
PARAMS = "params.json"

_FOR_CONVERTERS = (".json", ".jsonl", ".jinja", ".model", ".txt", ".tiktoken", ".v3", ".vocab")
_RAW_WEIGHTS = re.compile(r"consolidated([.-].+)?\.(safetensors|pth|pt)")
_CACHED = re.compile(r"models--([\w.-]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_GGUF = re.compile(r"\.gguf$", re.IGNORECASE)
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ADDRESS = re.compile(
    r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[^/?#]+)(?P<file>/[^?#]+)?)?/?(?:[?#].*)?"
)
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>.+\.gguf))?(?:@(?P<revision>.+))?")


def weight_files(names: Iterable[str]) -> list[str]:
    """The weight files among the names of a folder, sorted: safetensors, else ``torch.save``'s.

    A file that is a whole model stands alone, as in transformers.
    """
    there = list(names)
    for whole in WHOLE:
        if found := weights_like(there, whole):
            return [whole] if whole in found else found
    return []


def weights_like(names: Iterable[str], whole: str) -> list[str]:
    """The names of a whole model or its shards, sorted."""
    start, end = whole.split(".")
    return sorted(n for n in names if n.startswith(start) and n.endswith(f".{end}"))


def index_name(names: Iterable[str]) -> str:
    """What the index of the weights is called, whether or not it is among the names of a folder."""
    there = list(names)
    files = weight_files(there)
    is_pickled = files[0].endswith(PICKLED) if files else INDEX not in there
    return PICKLE_INDEX if is_pickled and (files or PICKLE_INDEX in there) else INDEX


def is_for_converters(name: str) -> bool:
    """Whether a file of a repository can say something about the model to llama.cpp's converter.

    Those are texts and vocabularies, in the folder itself or one below; neither weights nor code.
    """
    path = PurePath(name)
    return path.suffix in _FOR_CONVERTERS and len(path.parts) <= 2 and name[0] != "."


def files_for_converters(folder: Path) -> list[Path]:
    """The files of a folder, and of those in it, that `is_for_converters` names, sorted."""
    found = (*folder.glob("*"), *folder.glob("*/*"))
    return sorted(f for f in found if is_for_converters(str(f.relative_to(folder))) and f.is_file())


def raw_weight_files(names: Iterable[str]) -> list[str]:
    """The weight files of a raw Mistral release among names; safetensors where it has both."""
    found = [name for name in names if _RAW_WEIGHTS.fullmatch(name)]
    return [name for name in found if name.endswith(".safetensors")] or found


def is_raw_release(names: Sequence[str]) -> bool:
    """Whether the files of a folder are a raw release, and no Hugging Face checkpoint."""
    return (
        PARAMS in names
        and bool(raw_weight_files(names))
        and not any(n.startswith("model") and n.endswith(".safetensors") for n in names)
    )


def folder_name(path: Path) -> str:
    """What people call a folder. A snapshot in the Hub's cache has its repository's name."""
    found = snapshot_of(path)
    return found[0].rpartition("/")[2] if found else path.resolve().name


def snapshot_of(path: Path) -> tuple[str, str] | None:
    """The repository and the commit of a snapshot folder in the Hub's cache, else None.

    The cache keeps a repository as ``models--OWNER--NAME/snapshots/COMMIT``.
    """
    folder = path.resolve()
    kept = _CACHED.fullmatch(folder.parent.parent.name)
    is_snapshot = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return (kept[1].replace("--", "/", 1), folder.name) if kept and is_snapshot else None


def shard_names(path: AnyPath) -> list[AnyPath]:
    """A GGUF itself, or all shards of a split one, of which the first must be named.

    Raises:
        GGUFError: another shard is named.

    """
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    stem, index, count = match[1], int(match[2]), int(match[3])
    if index != 1 or not count:
        raise GGUFError(
            f"{path} is shard {index} of {count}; give the first one, "
            f"{stem}-00001-of-{count:05}.gguf."
        )
    return [path.with_name(shard_name(stem, i, count)) for i in range(count)]


def shard_name(stem: str, index: int, count: int) -> str:
    """What llama-gguf-split calls a shard, which it counts from 1; ``index`` begins at 0."""
    return f"{stem}-{index + 1:05d}-of-{count:05d}.gguf"


def without_shard(name: str) -> str:
    """The name of a GGUF without its ending, and without the number of a shard."""
    match = _SHARD.fullmatch(name)
    return match[1] if match else _GGUF.sub("", name)


def is_first_file(name: str) -> bool:
    """Whether a GGUF is one by itself, or the first of its shards."""
    match = _SHARD.fullmatch(name)
    return match is None or int(match[2]) == 1


@dataclass(frozen=True, slots=True)
class HubName:
    """What a user calls something on the Hub: a repository, or a GGUF in it."""

    repo_id: str
    revision: str | None
    file: str | None = None


def parse_hub_name(text: str) -> HubName | None:
    """``NAMESPACE/NAME[/FILE.gguf][@REVISION]`` in its parts; None if it is a path.

    The address of a repository or a file, as a browser shows it, is one, too.
    """
    match = _HUB_NAME.fullmatch(without_address(text))
    if match is None or text.startswith((".", "/")):
        return None
    return HubName(match["repo"], match["revision"], match["file"])


def is_repo_id(text: str) -> bool:
    """Whether a text has the form ``NAMESPACE/NAME``."""
    return _REPO_ID.fullmatch(text) is not None


def without_address(text: str) -> str:
    """An address on huggingface.co as a Hub id, with its file and revision; other text as it is."""
    match = _ADDRESS.fullmatch(text.strip())
    if match is None:
        return text
    revision = unquote(match["revision"] or "")
    at = f"@{revision}" if revision and revision != "main" else ""
    return f"{match['repo']}{match['file'] or ''}{at}"
