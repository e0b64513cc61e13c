"""The header of a GGUF file on the Hugging Face Hub."""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from quantkit.checkpoint.gguf import parse_header
from quantkit.checkpoint.names import shard_names
from quantkit.checkpoint.remote import RemoteRepo, explained, open_repo, read_range
from quantkit.core.errors import CheckpointError, GGUFError
from quantkit.core.writing import replace_file

# A header with a vocabulary of 32,000 pieces has some 700 KB, one of 256,000 about 10 MB.
_FIRST_RANGE = 2**20
_MOST_HEADER_BYTES = 2**28
_NOT_HERE = "on-the-hub"  # the folder that whole files would lie in, and never do


@dataclass(frozen=True, slots=True)
class FetchedHeader:
    """The header of a file on the Hub.

    It lies in ``here``, a local file with nothing else. ``file`` is what the whole file is called
    on this machine, whether or not it is here, and ``n_bytes`` its size.
    """

    here: Path
    file: Path
    n_bytes: int


def fetch_gguf_header(repo_id: str, filename: str, revision: str | None = None) -> tuple[Path, int]:
    """Fetch the header of a GGUF file, in ranges that grow until it is whole.

    Returns:
        a local file with the header and nothing else, in the Hub's cache of assets, for
        `read_header` with ``n_bytes``; and the size of the whole file in bytes. Where
        the Hub's cache has the whole file, it is that file.

    Raises:
        CheckpointError: the Hub cannot be reached, or does not have this file.
        GGUFError: the file is not a sound GGUF.

    """
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        path = cached_file(repo_id, filename, revision)
        return path, path.stat().st_size
    fetched = fetch_header(open_repo(repo_id, revision), filename)
    return fetched.here, fetched.n_bytes


def cached_file(repo_id: str, filename: str, revision: str | None = None) -> Path:
    """A file of the Hub's cache, for where HF_HUB_OFFLINE is set.

    Raises:
        CheckpointError: it is not there.

    """
    found = _cached(repo_id, filename, revision)
    if found is None:
        raise CheckpointError(
            f"HF_HUB_OFFLINE is set, and {filename} of {repo_id} is not in the Hub's cache; unset "
            "it, or give a local file."
        )
    return found


def cached_gguf(repo_id: str, filename: str, revision: str | None = None) -> Path | None:
    """The first file of a GGUF of which the Hub's cache has all files; asks nobody."""
    names = shard_names(PurePosixPath(filename))
    found = [_cached(repo_id, str(name), revision) for name in names]
    return found[0] if all(found) else None


def _cached(repo_id: str, filename: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    with explained(repo_id, revision):
        cached = try_to_load_from_cache(repo_id, filename, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def fetch_header(repo: RemoteRepo, filename: str) -> FetchedHeader:
    """Fetch the header of a GGUF of a repository, in ranges that grow until it is whole.

    Raises:
        CheckpointError: the Hub cannot be reached, or does not have this file.
        GGUFError: the file is not a sound GGUF.

    """
    from huggingface_hub import cached_assets_path

    cached = _cached(repo.repo_id, repo.folder + filename, repo.commit)
    if cached is not None:
        return FetchedHeader(cached, cached, cached.stat().st_size)
    if filename not in repo.sizes:
        known = sorted(name for name in repo.sizes if name.endswith(".gguf"))
        has = f"it has {', '.join(known[:3])}" if known else "it has no GGUF file"
        raise CheckpointError(f"{repo} has no file {repo.folder + filename!r}; {has}.")
    n_bytes = repo.sizes[filename]
    folder = cached_assets_path("quantkit", namespace=repo.repo_id, subfolder=repo.commit)
    # A name on the Hub may hold folders, or lead out of them.
    name = (repo.folder + filename).replace("/", "--").replace("\\", "--")
    path = folder / name
    fetched = FetchedHeader(path, folder / _NOT_HERE / filename.rpartition("/")[2], n_bytes)
    if path.is_file():
        return fetched
    start = b""
    end = _FIRST_RANGE
    while True:
        start += read_range(repo, filename, len(start), end)
        try:
            header = parse_header(start, n_bytes)
        except GGUFError as error:
            raise GGUFError(f"{filename} of {repo}: {error}; choose another file.") from None
        if header is not None:
            break
        if len(start) >= min(n_bytes, _MOST_HEADER_BYTES):
            raise GGUFError(
                f"{filename} of {repo} has no end of its header within {len(start):,} bytes; "
                "choose another file."
            )
        end *= 2
    replace_file(path, start[: header.data_offset], path.with_name(f"{name}.{os.getpid()}.part"))
    return fetched
