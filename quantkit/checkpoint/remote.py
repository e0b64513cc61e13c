"""One commit of a repository on the Hugging Face Hub: its files, whole or by byte range.

Tokens, HF_ENDPOINT, proxies and the cache are huggingface_hub's business; every failure comes out
as one sentence.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from quantkit.core.errors import CheckpointError, SourceChangedError

T = TypeVar("T")

_ATTEMPTS = 5
_FIRST_WAIT = 0.2
_LONGEST_WAIT = 30.0
_LONGEST_RETRY_AFTER = 300.0  # the Hub counts requests in windows of five minutes
_TIMEOUT = 20.0
# An answer that gave this much before it broke off was no failure.
_PROGRESS = 64 * 1024
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class RemoteRepo:
    """A model repository at one commit, or a folder in one.

    ``sizes`` has the bytes of each of its files, ``hashes`` the sha256 of those that the Hub keeps
    in its large file storage, as all weights are. ``etags`` is what the server has called files
    since this was made: a file that gets another ETag has changed. ``answers`` counts the bytes of
    each file or range that came over the network, as far as they are known.
    """

    repo_id: str
    commit: str
    sizes: dict[str, int]
    hashes: dict[str, str] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict, compare=False)
    folder: str = ""
    answers: list[int] = field(default_factory=list, compare=False)

    def __str__(self) -> str:
        return f"{self.repo_id} at {self.commit[:12]}"

    @property
    def n_fetched(self) -> int:
        """Bytes of its files that came over the network since this was made."""
        return sum(self.answers)

    def within(self, folder: str) -> "RemoteRepo":
        """A folder of the repository, whose files are named as they are in it."""

        def inside(known: dict[str, T]) -> dict[str, T]:
            return {
                name.removeprefix(folder): value
                for name, value in known.items()
                if name.startswith(folder)
            }

        return RemoteRepo(
            self.repo_id,
            self.commit,
            inside(self.sizes),
            inside(self.hashes),
            {},
            folder,
            self.answers,
        )


def open_repo(repo_id: str, revision: str | None = None) -> RemoteRepo:
    """Look a repository up and pin the commit that ``revision`` (a branch, tag or hash) is now.

    Raises:
        CheckpointError: the Hub does not answer, or does not show this repository.

    """
    from huggingface_hub import HfApi

    with explained(repo_id, revision):
        info = _persistently(
            lambda: HfApi().model_info(
                repo_id, revision=revision, files_metadata=True, timeout=_TIMEOUT
            )
        )
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    unknown = [name for name, size in sizes.items() if size is None]
    # A commit becomes part of file names.
    if unknown or not re.fullmatch("[0-9a-f]{40}", info.sha or ""):
        raise CheckpointError(
            f"The server's description of {repo_id} lacks its commit or the sizes of its files; "
            "check that HF_ENDPOINT points to a Hub."
        )
    hashes = {
        file.rfilename: file.lfs.sha256
        for file in info.siblings or ()
        if file.lfs is not None and re.fullmatch("[0-9a-f]{64}", file.lfs.sha256)
    }
    known = {name: size for name, size in sizes.items() if size is not None}
    return RemoteRepo(repo_id, str(info.sha), known, hashes)


def download(repo: RemoteRepo, name: str) -> Path:
    """Put one file into the Hub's cache, if it is not there yet; its path in the snapshot folder.

    Raises:
        CheckpointError: it cannot be downloaded.

    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    wanted = repo.repo_id, repo.folder + name
    with explained(repo.repo_id, repo.commit):
        is_here = isinstance(try_to_load_from_cache(*wanted, revision=repo.commit), str)
        path = Path(_persistently(partial(hf_hub_download, *wanted, revision=repo.commit)))
    if not is_here:
        repo.answers.append(path.stat().st_size)
    return path


def _persistently(request: Callable[[], Any]) -> Any:
    """What a request of huggingface_hub gives, tried again where the connection fails."""
    from huggingface_hub import errors

    for attempt in range(1, _ATTEMPTS):
        try:
            return request()
        except errors.LocalEntryNotFoundError:  # its name for "not cached, and no connection"
            pass
        except errors.HTTPError as error:  # httpx's, through it
            response = getattr(error, "response", None)
            if response is not None and response.status_code not in _TRY_AGAIN:
                raise
        time.sleep(_FIRST_WAIT * 2 ** (attempt - 1))
    return request()


def read_range(repo: RemoteRepo, name: str, start: int, end: int) -> bytes:
    """Bytes ``start`` to ``end`` (exclusive) of one file, as `fetch_range` gets them."""
    return bytes(fetch_range(repo, name, start, end))


def fetch_range(
    repo: RemoteRepo,
    name: str,
    start: int,
    end: int,
    *,
    attempts: int = _ATTEMPTS,
    pause: Callable[[float], object] = time.sleep,
) -> bytearray:
    """Bytes ``start`` to ``end`` (exclusive) of one file, cut at its end.

    A dropped connection is resumed where it broke, and a server that is busy is asked again when
    it says so, until ``attempts`` answers in a row brought next to nothing.

    Args:
        repo: the repository.
        name: of the file in it.
        start: the first byte.
        end: the first byte that is not wanted any more.
        attempts: after how many bad answers to give up.
        pause: waits for so many seconds. It is called with 0 whenever some bytes came, so that it
            can end a fetch by raising.

    Raises:
        SourceChangedError: the file is another than it was in an earlier answer.
        CheckpointError: the server fails for good, or answers with anything but these bytes.

    """
    end = min(end, repo.sizes[name])
    got = bytearray(max(0, end - start))
    at, failures = 0, 0
    while start + at < end:
        is_last = failures == attempts - 1
        with explained(repo.repo_id, repo.commit):
            n_bytes, wait = _receive(repo, name, start + at, end, got, at, pause, is_last=is_last)
        at += n_bytes
        repo.answers.append(n_bytes)
        failures = 0 if n_bytes >= _PROGRESS else failures + 1
        if start + at >= end:
            break
        if failures == attempts:
            raise CheckpointError(
                f"{name} of {repo} stopped {attempts} times before its bytes {start:,} to {end:,} "
                "were here; try again when the connection is better."
            )
        backoff = min(_FIRST_WAIT * 2 ** max(0, failures - 1), _LONGEST_WAIT)
        pause(max(backoff, min(wait, _LONGEST_RETRY_AFTER)))
    return got


def _receive(
    repo: RemoteRepo,
    name: str,
    start: int,
    end: int,
    got: bytearray,
    at: int,
    pause: Callable[[float], object],
    *,
    is_last: bool,
) -> tuple[int, float]:
    """Put one answer into ``got`` at ``at``; its bytes, and the seconds that the server asks for.

    Fewer bytes than asked for mean that another request must follow.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # httpx's, through it
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(repo.repo_id, repo.folder + name, revision=repo.commit)
    headers = build_hf_headers() | {
        "Range": f"bytes={start}-{end - 1}",
        "Accept-Encoding": "identity",  # a compressed answer has other offsets
    }
    n_bytes = 0
    try:
        with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT) as response:
            if response.status_code in _TRY_AGAIN and not is_last:
                after = response.headers.get("Retry-After", "")
                return 0, float(after) if after.isdecimal() else 0.0
            if response.status_code >= 400:
                response.read()
            if response.status_code == 416:
                raise _changed(repo, name)
            hf_raise_for_status(response)
            _check_range(repo, name, start, end, response)
            _check_unchanged(repo, name, response)
            for chunk in response.iter_raw():
                if start + n_bytes + len(chunk) > end:
                    raise CheckpointError(
                        f"The server sent more of {name} of {repo} than was asked for; check "
                        "HF_ENDPOINT and any proxy in between."
                    )
                got[at + n_bytes : at + n_bytes + len(chunk)] = chunk
                n_bytes += len(chunk)
                pause(0)
    except OfflineModeIsEnabled:
        raise
    except HTTPError as error:
        if (is_last and n_bytes < _PROGRESS) or getattr(error, "response", None) is not None:
            raise
    return n_bytes, 0.0


def _check_range(repo: RemoteRepo, name: str, start: int, end: int, response: Any) -> None:
    """Check that an answer is the range asked for, of a file of the size that the Hub lists."""
    if response.status_code != 206:
        raise CheckpointError(
            f"The server answered {response.status_code} instead of a byte range of {name} of "
            f"{repo}; check that HF_ENDPOINT points to a Hub and that no proxy removes ranges, or "
            "download the checkpoint."
        )
    answer = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer)
    size = repo.sizes[name]
    if match is not None and int(match[3]) != size:
        raise _changed(repo, name)
    if match is None or tuple(map(int, match.groups())) != (start, end - 1, size):
        raise CheckpointError(
            f"The server was asked for bytes {start}-{end - 1}/{size} of {name} of {repo} but "
            f"answered {answer[:80]!r}; don't trust this server, or try again later."
        )


def _check_unchanged(repo: RemoteRepo, name: str, response: Any) -> None:
    """Check that an answer is of the commit, and of the file, that earlier ones were of.

    The Hub itself says so; where it sends clients elsewhere for the bytes, in its redirect.
    """
    hub = response.history[0] if response.history else response
    if hub.headers.get("X-Repo-Commit", repo.commit) != repo.commit:
        raise _changed(repo, name)
    etag = hub.headers.get("X-Linked-ETag") or hub.headers.get("ETag")
    if etag is not None:
        etag = etag.removeprefix("W/").strip('"')
        if repo.etags.setdefault(name, etag) != etag:
            raise _changed(repo, name)


def _changed(repo: RemoteRepo, name: str) -> SourceChangedError:
    return SourceChangedError(
        f"{name} of {repo} changed on the server while it was read; run the same command again, "
        "which starts over."
    )


@contextmanager
def explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn whatever huggingface_hub raises into one sentence about a repository.

    Raises:
        CheckpointError: instead of its errors.

    """
    from huggingface_hub import errors

    at = f" at revision {revision!r}" if revision else ""
    try:
        yield
    except errors.HFValidationError:
        raise CheckpointError(
            f"{repo_id!r} is neither a folder nor a name on the Hub; write it as namespace/name."
        ) from None
    except errors.OfflineModeIsEnabled:
        raise CheckpointError(
            f"{repo_id}{at} is needed from the Hub, but HF_HUB_OFFLINE is set; unset it, or "
            "download the checkpoint first."
        ) from None
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repo_id} is gated; accept its terms on its page, then log in with `hf auth login` "
            "or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repo_id} has no revision {revision!r}; give a branch, tag or commit of it."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo_id} is not on the Hub or is private; check the spelling, or log in with "
            "`hf auth login` or HF_TOKEN if it is private."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(repo_id, error) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(
            f"A file of {repo_id}{at} is not there any more ({_first_line(error)}); try again."
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refused(repo_id, error) from error
    except (errors.HTTPError, errors.FileMetadataError) as error:  # httpx's, through it
        raise _unreachable(repo_id, error) from error
    except OSError as error:
        raise CheckpointError(
            f"{repo_id} cannot be stored in the Hub's cache ({_first_line(error)}); check the disk "
            "and HF_HOME."
        ) from error


def _unreachable(repo_id: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"The Hub cannot be reached for {repo_id} ({_first_line(error)}); check the network and "
        "HF_ENDPOINT, or give a downloaded folder."
    )


def _refused(repo_id: str, error: Any) -> CheckpointError:
    status = error.response.status_code
    advice = {
        401: "the token is not valid, so log in again with `hf auth login` or correct HF_TOKEN",
        403: "the token has no right to read it, so use one that has",
        429: "too many requests were sent, so wait some minutes, or log in for a higher limit",
    }.get(status, "try again later")
    return CheckpointError(f"The Hub refused {repo_id} with status {status}: {advice}.")


def _first_line(error: BaseException) -> str:
    """What an error says first, without an end that would double ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
