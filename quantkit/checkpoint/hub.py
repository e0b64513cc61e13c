"""A checkpoint on the Hugging Face Hub, known without downloading its weights."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.folder import is_foreign, list_folder, open_folder, read_checkpoint
from quantkit.checkpoint.names import (
    LICENSES,
    PICKLED,
    index_name,
    is_first_file,
    is_for_converters,
    weight_files,
)
from quantkit.checkpoint.pth import parse_pth, read_pth
from quantkit.checkpoint.remote import RemoteRepo, download, explained, open_repo, read_range
from quantkit.checkpoint.safetensors import LENGTH_BYTES, header_length, parse_header, read_header
from quantkit.checkpoint.tokenizer.source import TOKENIZER_FILES
from quantkit.checkpoint.window import Window
from quantkit.core.errors import CheckpointError
from quantkit.core.tensors import SourceTensor
from quantkit.core.units import format_size

_CONNECTIONS = 8

# Mixtral-8x22B's shards have headers of 3.9 KB; a longer one takes a second request.
_FIRST_RANGE = 4 * 1024

# A file of torch.save ends with some 100 bytes per tensor, and describes its tensors at its
# beginning: two requests. Of zips that others wrote every tensor takes one more.
_LAST_RANGE = 16 * 1024
_MOST_RANGES = 1000

# Everything but the weights that a build reads or carries over.
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
    "README.md",
    *LICENSES,
)
_TEMPLATES = "additional_chat_templates/"

_LONGEST_LIST = 400  # characters

# The index of the largest models has a few MB, a tokenizer.json up to 20.
_MOST_SMALL_BYTES = 100 * 10**6


def open_hub_checkpoint(repo_id: str, revision: str | None = None) -> Checkpoint:
    """Open a repository as `open_checkpoint` opens a folder, from a few hundred KB of it.

    The revision is resolved to a commit once (``Checkpoint.repo``), and everything is read at
    that commit. The small files land in the Hub's cache, in the folder ``Checkpoint.path``; of the
    weights only the headers are read, by range requests, several at a time. With HF_HUB_OFFLINE
    the checkpoint must be in the cache with its weights.

    Raises:
        CheckpointError: the repository cannot be reached or read, is not a checkpoint, or disagrees
            with itself.
        SafetensorsError: a weight file breaks the format's rules.

    """
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return _open_cached(repo_id, revision)
    repo = open_repo(repo_id, revision)
    _require_weights(repo)
    names = sorted(name for name in repo.sizes if "/" not in name)
    wanted = (*_SMALL_FILES, index_name(names))
    small = [n for n in repo.sizes if n in wanted or _is_template(n)]
    _require_small(repo, small)

    with _no_progress_bars(), ThreadPoolExecutor(_CONNECTIONS) as pool:
        paths = dict(zip(small, pool.map(partial(download, repo), small), strict=True))
        path = paths["config.json"].parent

        def read_headers(files: tuple[Path, ...]) -> Iterator[dict[str, SourceTensor]]:
            return pool.map(partial(_read_header, repo), files)

        checkpoint = read_checkpoint(path, names, read_headers)
        if is_foreign(checkpoint):  # a converter may look into any of them
            others = [n for n in repo.sizes if n not in small and is_for_converters(n)]
            _require_small(repo, others)
            list(pool.map(partial(download, repo), others))
    return replace(checkpoint, repo=repo)


def _require_small(repo: RemoteRepo, names: Iterable[str]) -> None:
    for name in names:
        if repo.sizes[name] > _MOST_SMALL_BYTES:
            raise CheckpointError(
                f"{name} of {repo} has {repo.sizes[name]:,} bytes, too many for such a file; "
                "don't trust this checkpoint."
            )


def _require_weights(repo: RemoteRepo) -> None:
    """Refuse a repository without weights, and say what it holds instead."""
    files = weight_files(name for name in repo.sizes if "/" not in name)
    if files and "config.json" in repo.sizes:
        return
    ggufs = [name for name in sorted(repo.sizes) if name.endswith(".gguf") and is_first_file(name)]
    if ggufs:
        raise CheckpointError(
            f"{repo} holds GGUF files, so name one, such as {repo.repo_id}/{ggufs[0]}: "
            f"{_listed(repo, ggufs)}."
        )
    lacks = "config.json" if "config.json" not in repo.sizes else "model*.safetensors"
    raise CheckpointError(f"{repo} has no {lacks}; give the repository of the original model.")


def _listed(repo: RemoteRepo, names: list[str]) -> str:
    """Files with their sizes, as many as a sentence holds."""
    text = ""
    for place, name in enumerate(names):
        more = f"{', ' if text else ''}{name} ({format_size(repo.sizes[name])})"
        if text and len(text) + len(more) > _LONGEST_LIST:
            return f"{text} and {len(names) - place} more"
        text += more
    return text


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep huggingface_hub from drawing: only the command line prints."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _is_template(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return f"{folder}/" == _TEMPLATES and file.endswith(".jinja")


def _read_header(repo: RemoteRepo, path: Path) -> dict[str, SourceTensor]:
    """The tensors of one weight file: of the cached copy, else of the one on the Hub."""
    if path.suffix == PICKLED:
        return read_pth(path) if path.is_file() else _read_pickled(repo, path)
    if path.is_file():
        return read_header(path, any_dtype=True)
    file_bytes = repo.sizes[path.name]
    start = read_range(repo, path.name, 0, _FIRST_RANGE)
    header_end = LENGTH_BYTES + header_length(path, start, file_bytes)
    if header_end > len(start):
        start += read_range(repo, path.name, len(start), header_end)
    return parse_header(path, start[LENGTH_BYTES:header_end], file_bytes, any_dtype=True)


def _read_pickled(repo: RemoteRepo, path: Path) -> dict[str, SourceTensor]:
    """The tensors of a file of torch.save on the Hub: its directory and its pickle are fetched."""
    ranges = 0

    def fetch(start: int, end: int) -> bytes:
        nonlocal ranges
        ranges += 1
        if ranges > _MOST_RANGES:
            raise CheckpointError(
                f"{path.name} of {repo} is not laid out as torch.save does it, so that describing "
                f"it takes over {_MOST_RANGES:,} requests; download it (hf download) and give the "
                "folder."
            )
        return read_range(repo, path.name, start, end)

    return parse_pth(path, Window(repo.sizes[path.name], fetch, _LAST_RANGE))


def _open_cached(repo_id: str, revision: str | None) -> Checkpoint:
    """The checkpoint as an earlier download left it in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    with explained(repo_id, revision):
        config = try_to_load_from_cache(repo_id, "config.json", revision=revision)
    advice = "unset HF_HUB_OFFLINE, or download the checkpoint first"
    if not isinstance(config, str):
        raise CheckpointError(
            f"HF_HUB_OFFLINE is set, and the config.json of {repo_id} is not in the Hub's cache; "
            f"{advice}."
        )
    folder = Path(config).parent
    try:
        checkpoint = open_folder(folder, list_folder(folder))
    except CheckpointError as error:
        raise type(error)(f"HF_HUB_OFFLINE is set, and {error} ({advice})") from error
    sizes = {file.name: file.stat().st_size for file in checkpoint.files}
    return replace(checkpoint, repo=RemoteRepo(repo_id, folder.name, sizes))
