"""The header of a GGUF file on the Hugging Face Hub."""

import os
from pathlib import Path

from quantkit.checkpoint.gguf import parse_header
from quantkit.checkpoint.remote import explained, open_repo, read_range
from quantkit.core.errors import CheckpointError, GGUFError
from quantkit.core.writing import replace_file

# A header with a vocabulary of 32,000 pieces has some 700 KB, one of 256,000 about 10 MB.
_FIRST_RANGE = 2**20
_MOST_HEADER_BYTES = 2**28


def fetch_gguf_header(repo_id: str, filename: str, revision: str | None = None) -> tuple[Path, int]:
    """Fetch the header of a GGUF file, in ranges that grow until it is whole.

    Returns:
        a local file with the header and nothing else, in the Hub's cache of assets, for
        `read_header` with ``n_bytes``; and the size of the whole file in bytes. Where
        the Hub's cache has the whole file, it is that file.

    Raises:
        CheckpointError: the Hub cannot be reached, or does not have this file.
        GGUFError: the file is no sound GGUF.

    """
    from huggingface_hub import cached_assets_path, try_to_load_from_cache
    from huggingface_hub.constants import is_offline_mode

    repo = None if is_offline_mode() else open_repo(repo_id, revision)
    with explained(repo_id, revision):
        at = revision if repo is None else repo.commit
        cached = try_to_load_from_cache(repo_id, filename, revision=at)
    if isinstance(cached, str):
        return Path(cached), Path(cached).stat().st_size
    if repo is None:
        raise CheckpointError(
            f"HF_HUB_OFFLINE is set, and {filename} of {repo_id} is not in the Hub's cache; unset "
            "it, or give a local file."
        )
    if filename not in repo.sizes:
        known = sorted(name for name in repo.sizes if name.endswith(".gguf"))
        has = f"it has {', '.join(known[:3])}" if known else "it has no GGUF file"
        raise CheckpointError(f"{repo} has no file {filename!r}; {has}.")
    n_bytes = repo.sizes[filename]
    folder = cached_assets_path("quantkit", namespace=repo_id, subfolder=repo.commit)
    # A name on the Hub may hold folders, or lead out of them.
    path = folder / filename.replace("/", "--").replace("\\", "--")
    if path.is_file():
        return path, n_bytes
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
                f"{filename} of {repo} has no end of its header in {len(start):,} bytes; choose "
                "another file."
            )
        end *= 2
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    replace_file(path, start[: header.data_offset], part)
    return path, n_bytes
