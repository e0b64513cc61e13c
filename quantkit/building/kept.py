"""A checkpoint from the Hub, stored in a folder while a build reads it."""

import errno
import os
import shutil
from pathlib import Path

from quantkit.building.output import PARTIAL
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.folder import is_foreign
from quantkit.checkpoint.names import INDEX, LICENSES, PICKLE_INDEX, files_for_converters
from quantkit.checkpoint.remote import RemoteRepo
from quantkit.checkpoint.tokenizer import tokenizer_files
from quantkit.core.errors import CheckpointError, NoSpaceError, OutputError
from quantkit.core.files import has_file, read_file
from quantkit.core.units import format_size
from quantkit.core.writing import open_to_append, replace_file, sync_folder

_BESIDE = ("config.json", "generation_config.json", INDEX, PICKLE_INDEX, "README.md")

_ELSEWHERE = "choose another folder with --keep-source"


class KeptSource:
    """The folder. Weight files grow in it under partial names and get their own when all is there.

    A partial name holds the hash that the file must have, so that what an earlier run left of
    another version is never continued.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint) -> None:
        assert checkpoint.repo is not None  # noqa: S101 - only what is on the Hub can be kept
        self.folder = folder
        self._checkpoint = checkpoint
        self._repo: RemoteRepo = checkpoint.repo

    def prepare(self) -> None:
        """Make the folder and put the small files in it.

        Raises:
            OutputError: it cannot be made, or holds another checkpoint.

        """
        source = self._checkpoint.path
        is_gguf = self._checkpoint.header is not None  # with nothing beside it that is of use
        names = [] if is_gguf else [source / name for name in (*_BESIDE, *LICENSES)]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if is_foreign(self._checkpoint):
                names += files_for_converters(source)
            for file in dict.fromkeys(names if is_gguf else (*names, *tokenizer_files(source))):
                if has_file(file, error=CheckpointError):
                    self._put(file, self.folder / file.relative_to(source))
        except OSError as error:
            raise OutputError(
                f"{self.folder} cannot keep the checkpoint ({error.strerror}); choose another "
                "folder with --keep-source."
            ) from None
        for file in self._checkpoint.files:
            path = self.path(file.name)
            if path.exists() and path.stat().st_size != self._repo.sizes[file.name]:
                raise self._another(path)

    def _put(self, source: Path, target: Path) -> None:
        data = read_file(source, error=CheckpointError)
        if has_file(target, error=OutputError, fix=_ELSEWHERE):
            if read_file(target, error=OutputError, fix=_ELSEWHERE) != data:
                raise self._another(target)
            return
        target.parent.mkdir(exist_ok=True)
        replace_file(target, data, target.with_name(target.name + PARTIAL))

    def _another(self, path: Path) -> OutputError:
        return OutputError(
            f"{path} does not belong to {self._repo}; choose another folder with --keep-source, or "
            "move it away."
        )

    def path(self, name: str) -> Path:
        """Where a weight file ends."""
        return self.folder / name

    def partial(self, name: str) -> Path:
        """Where it grows."""
        version = self._repo.hashes.get(name) or self._repo.commit
        return self.folder / f"{name}.{version[:12]}{PARTIAL}"

    @property
    def missing(self) -> int:
        """Bytes of weights that are not in the folder yet."""
        names = [file.name for file in self._checkpoint.files]
        there = (max(_size(self.path(name)), _size(self.partial(name))) for name in names)
        return sum(self._repo.sizes[name] for name in names) - sum(there)

    def shares_disk_with(self, folder: Path) -> bool:
        """Whether what is kept takes room from another folder, both of which are there."""
        return self.folder.stat().st_dev == folder.stat().st_dev

    def begun(self, name: str) -> tuple[Path, int]:
        """Where a weight file grows, and how much of it, front to back, is there."""
        partial = self.partial(name)
        if _size(partial) > self._repo.sizes[name]:
            partial.unlink()  # nothing of ours gets longer than it should
        return partial, _size(partial)

    def open(self, name: str) -> "KeptFile":
        """One weight file, to be written on where an earlier run ended."""
        return KeptFile(self, name, self._repo)


class KeptFile:
    """One weight file that grows."""

    def __init__(self, kept: KeptSource, name: str, repo: RemoteRepo) -> None:
        self._final = kept.path(name)
        self._partial, self.n_bytes = kept.begun(name)
        self._known = repo.hashes.get(name)
        self._file = open_to_append(self._partial, buffering=0)

    def close(self) -> None:
        """Close it as it is."""
        self._file.close()

    def write(self, data: memoryview) -> None:
        """Append bytes.

        Raises:
            NoSpaceError: the disk is full.

        """
        done = 0
        try:
            while done < len(data):
                done += self._file.write(data[done:])
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(self._partial.parent).free
            raise NoSpaceError(
                f"The disk of {self._partial.parent} is full ({format_size(free)} free); free some "
                "of it, or leave out --keep-source, and run the same command to resume."
            ) from None

    def finish(self, sha256: str) -> None:
        """Give the whole file its name; delete it if it is not the one that the Hub lists."""
        if self._known not in (None, sha256):
            self._partial.unlink()
            return
        os.fsync(self._file.fileno())
        self._partial.replace(self._final)
        sync_folder(self._final.parent)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
