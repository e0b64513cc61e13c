"""Files into a repository on the Hub, file by file: nothing twice, and checked once it is there.

``Uploader.send`` commits what it is given and returns when the Hub lists it with the right size
and hash. A file that the Hub has already is not sent again, so a killed upload goes on with the
file it was at. Tokens, HF_ENDPOINT and proxies are huggingface_hub's business.
"""

import hashlib
import io
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from quantkit.core.errors import PublishError, UploadError
from quantkit.core.files import open_file
from quantkit.publishing.refusals import LOST, TRY_AGAIN, explained, response_of, wait_asked_for

_ATTEMPTS = 6
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 300.0
_READ = 2**20

# Told after every piece: path in the repository, bytes of it done, its bytes.
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Upload:
    """One file to send: a local file or bytes, its path in the repository, its sha256 in hex."""

    content: Path | bytes
    path: str
    sha256: str

    @property
    def n_bytes(self) -> int:
        """Its size."""
        content = self.content
        return len(content) if isinstance(content, bytes) else content.stat().st_size


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub lists it; ``sha256`` is None for one in git itself, ``blob`` its git id."""

    n_bytes: int
    sha256: str | None
    blob: str

    def holds(self, upload: Upload) -> bool:
        """Whether this is the very file."""
        if self.n_bytes != upload.n_bytes:
            return False
        return self.sha256 == upload.sha256 if self.sha256 else self.blob == _git_id(upload)


class Uploader:
    """A repository that files are sent to."""

    def __init__(
        self,
        repo_id: str,
        *,
        private: bool = False,
        report: Report = lambda _path, _done, _total: None,
    ) -> None:
        self.repo_id = repo_id
        self._private = private
        self._report = report
        self.files: dict[str, RemoteFile] = {}

    def open(self) -> dict[str, RemoteFile]:
        """Make the repository unless it is there; the files in it, by path.

        Raises:
            PublishError: the token is missing, wrong or may not write there; or the repository
                should be private and is public.
            UploadError: the Hub does not answer, or not as a Hub does.

        """
        from huggingface_hub import HfApi

        api = HfApi()
        with explained(self.repo_id):
            self._persistently(
                lambda: api.create_repo(self.repo_id, private=self._private or None, exist_ok=True)
            )
            # One that was there keeps its visibility.
            if (
                self._private
                and not self._persistently(lambda: api.model_info(self.repo_id)).private
            ):
                raise PublishError(
                    f"{self.repo_id} exists and is public; make it private on its page first, or "
                    "leave out --private."
                )
        return self.refresh()

    def refresh(self) -> dict[str, RemoteFile]:
        """The files in the repository now, by path.

        Raises:
            PublishError, UploadError: as `open` does.

        """
        with explained(self.repo_id):
            self.files = self._persistently(lambda: list_files(self.repo_id))
        return self.files

    def has(self, upload: Upload) -> bool:
        """Whether the repository held this very file when it was last listed."""
        there = self.files.get(upload.path)
        return there is not None and there.holds(upload)

    def send(self, uploads: Sequence[Upload], message: str) -> list[str]:
        """Send files in one commit and check them on the Hub; the paths that were not there yet.

        Args:
            uploads: large files one by one, small ones together: a commit is all or nothing.
            message: of the commit.

        Raises:
            PublishError: the token may not write there.
            UploadError: the Hub fails for good, has no room, or lists something else afterwards.

        """
        missing = [upload for upload in uploads if not self.has(upload)]
        for upload in uploads:
            if upload not in missing:
                self._report(upload.path, upload.n_bytes, upload.n_bytes)
        if not missing:
            return []
        with explained(self.repo_id), _quietly():
            self._persistently(lambda: self._commit(missing, message))
            listed = self._persistently(
                lambda: list_files(self.repo_id, [upload.path for upload in missing])
            )
        for upload in missing:
            there = listed.get(upload.path)
            if there is None or not there.holds(upload):
                what = "is not there" if there is None else "is not what was sent"
                raise UploadError(
                    f"{upload.path} {what} in {self.repo_id} after its upload; run the same "
                    "command again."
                )
            self._report(upload.path, upload.n_bytes, upload.n_bytes)
        self.files |= listed
        return [upload.path for upload in missing]

    def _commit(self, uploads: Sequence[Upload], message: str) -> None:
        from huggingface_hub import HfApi

        # Made anew for every attempt: they remember what the Hub said the last time. It knows
        # which contents it has got, so another attempt does not send them again.
        operations = [_operation(upload, self._report) for upload in uploads]
        HfApi().create_commit(self.repo_id, operations, commit_message=message, num_threads=1)

    def _persistently(self, request: Callable[[], Any]) -> Any:
        """What a request gives, tried again where the Hub asks for it or the connection fails."""
        for attempt in range(1, _ATTEMPTS):
            try:
                return request()
            except (*LOST, RuntimeError) as error:
                response = response_of(error)
                if response is None:
                    if not isinstance(error.__cause__ or error, LOST):
                        raise
                elif response.status_code not in TRY_AGAIN:
                    raise
                wait = max(wait_asked_for(response), _FIRST_WAIT * 2 ** (attempt - 1))
            time.sleep(min(wait, _LONGEST_WAIT))
        return request()


def list_files(
    repo_id: str, paths: Sequence[str] | None = None, revision: str | None = None
) -> dict[str, RemoteFile]:
    """The files of a repository as the Hub lists them: all, or those of some paths.

    Errors are huggingface_hub's.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    entries = (
        api.list_repo_tree(repo_id, recursive=True, revision=revision)
        if paths is None
        else api.get_paths_info(repo_id, list(paths), revision=revision)
    )
    return {
        entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for entry in entries
        if isinstance(entry, RepoFile)
    }


def _operation(upload: Upload, report: Report) -> Any:
    """A commit's part for one file, which tells how far its upload is."""
    from huggingface_hub import CommitOperationAdd

    class Reported(CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
            with super().as_file() as file:
                if not with_tqdm:  # its sign for an upload
                    yield file
                    return
                counted = _Counted(file, lambda n: report(upload.path, n, upload.n_bytes))
                yield counted  # type: ignore[misc]  # a RawIOBase, read like any file

    operation = Reported(path_in_repo=upload.path, path_or_fileobj=upload.content)
    operation.upload_info.sha256 = bytes.fromhex(upload.sha256)
    return operation


class _Counted(io.RawIOBase):
    """A file that tells where its reader is."""

    def __init__(self, file: BinaryIO, tell: Callable[[int], None]) -> None:
        self._file = file
        self._tell = tell

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._tell(self._file.tell())
        return data


def _git_id(upload: Upload) -> str:
    """The id that git gives a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % upload.n_bytes)  # noqa: S324 - git's choice, no secret
    if isinstance(upload.content, bytes):
        digest.update(upload.content)
    else:
        with open_file(upload.content, error=PublishError, fix="build it again") as file:
            while data := file.read(_READ):
                digest.update(data)
    return digest.hexdigest()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep huggingface_hub from drawing, logging and warning: only the command line prints."""
    from logging import ERROR

    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    were_disabled, verbosity = are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity(ERROR)
    try:
        with warnings.catch_warnings():
            # It hands files to httpx in a way that httpx is about to rename.
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if not were_disabled:
            enable_progress_bars()
