"""Opening what is written. No link is ever followed, so nothing outside the folder is changed.

Somebody else may have put a link where an unfinished file goes, or a second name of a file that
lies elsewhere. Such a thing is never opened: one of our temporary names is cleared first, and a
final name that is a link is refused.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from quantkit.core.errors import OutputError
from quantkit.core.system import CLOSE_ON_EXEC, NO_FOLLOW, NO_WAIT

_ADVICE = "remove it, or choose another folder"


def is_own(path: Path) -> bool:
    """Whether a regular file lies here under this name alone: no link, no pipe, no second name."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def refuse_links(*paths: Path) -> None:
    """Refuse names that are links, or anything but files and folders.

    Raises:
        OutputError: one is.

    """
    for path in paths:
        try:
            mode = path.lstat().st_mode
        except OSError:
            continue
        if stat.S_ISLNK(mode):
            raise OutputError(f"{path} is a link, and nothing is written through links; {_ADVICE}.")
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OutputError(f"{path} is not a regular file; {_ADVICE}.")


def require_new(*files: Path | None, overwrite: bool) -> None:
    """Refuse to write over a file that is there, before any work, unless ``overwrite``.

    Raises:
        OutputError: there is one.

    """
    for file in files:
        if file is not None and file.is_file() and not overwrite:
            raise OutputError(f"{file} already exists; --overwrite replaces it, or name another.")


def open_to_resume(path: Path) -> int:
    """A file descriptor for reading and writing a file of ours, made where there is none.

    Raises:
        OutputError: what is there is a link or no file of ours.
        OSError: it cannot be opened.

    """
    return _open(path, os.O_RDWR | os.O_CREAT)


def open_to_append(path: Path, buffering: int = -1) -> BinaryIO:
    """A file of ours opened at its end, made where there is none.

    ``buffering`` is that of `open`: 0 where every write is to reach the system at once.

    Raises:
        OutputError: what is there is a link or no file of ours.
        OSError: it cannot be opened.

    """
    return os.fdopen(_open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab", buffering)


def open_written(path: Path) -> BinaryIO:
    """A file of ours, opened to read what was written.

    Raises:
        OutputError: what is there is a link or no file of ours.
        OSError: it cannot be opened.

    """
    return os.fdopen(_open(path, os.O_RDONLY), "rb")


def write_at_start(path: Path, data: bytes, n_bytes: int | None = None) -> None:
    """Write the beginning of a file of ours, durably.

    Args:
        path: the file, which is there.
        data: its first bytes.
        n_bytes: if given, the file holds nothing else afterwards, and is this long (sparse).

    Raises:
        OutputError: what is there is a link or no file of ours.
        OSError: it cannot be written.

    """
    with os.fdopen(_open(path, os.O_RDWR), "r+b") as file:
        if n_bytes is not None:
            file.truncate(len(data))
        file.write(data)
        if n_bytes is not None:
            file.truncate(n_bytes)
        file.flush()
        os.fsync(file.fileno())


def create(path: Path) -> BinaryIO:
    """A new file under one of our temporary names, for writing and reading.

    What was there is removed, never written to.

    Raises:
        OSError: it cannot be made.

    """
    path.unlink(missing_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW | CLOSE_ON_EXEC
    return os.fdopen(os.open(path, flags, 0o666), "w+b")


def write_file(path: Path, data: bytes, n_bytes: int | None = None) -> None:
    """Write a new file of ours; if ``n_bytes`` are given, it is so long, with a hole at its end.

    Raises:
        OSError: it cannot be made.

    """
    with create(path) as file:
        file.write(data)
        if n_bytes is not None:
            file.truncate(n_bytes)


def replace_file(path: Path, data: bytes, temporary: Path | None = None) -> None:
    """Write a small file whole and durably: it is the old one or the new one at any time.

    Args:
        path: the file; a regular one that is there is replaced.
        data: what it shall hold.
        temporary: the name under which it is written first, in the same folder.

    Raises:
        OutputError: ``path`` is a link or no file.
        OSError: it cannot be written.

    """
    refuse_links(path)
    temporary = temporary or path.with_name(f".{path.name}.partial")
    with create(temporary) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open(path: Path, flags: int) -> int:
    refuse_links(path)
    fd = os.open(path, flags | NO_FOLLOW | NO_WAIT | CLOSE_ON_EXEC, 0o666)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(fd)
        raise OutputError(f"{path} has a second name elsewhere or is not a file; {_ADVICE}.")
    os.set_blocking(fd, True)
    return fd
