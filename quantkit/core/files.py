"""Reading files that anybody may have made: regular ones only, and small ones up to a limit.

A pipe never ends, a device neither, and a sparse file of 20 GB takes no room on the disk. Links are
followed, because the Hub's cache is made of them; one that leads nowhere is not an absent file but
an unreadable one, so that what a build needs is never left out in silence.
"""

import os
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

from quantkit.core.errors import FileError, QuantkitError, TextError
from quantkit.core.system import CLOSE_ON_EXEC, NO_FOLLOW, NO_WAIT
from quantkit.core.units import format_size

SMALL = 64 * 10**6
"""Bytes of a small file at most: the largest tokenizer.json that models have takes half of it."""

MOST_TEXT = 256 * 10**6
"""Bytes of a text to measure or calibrate on at most: what is used of it is a few megabytes."""

AGAIN = "download it again"

GIT_LFS_POINTER = b"version https://git-lfs"
"""How a file begins that stands for another one, which git has not fetched yet."""

# What an error says: the class, made of one sentence.
Raise = Callable[[str], QuantkitError]


def open_file(
    path: Path, *, error: Raise = FileError, fix: str = AGAIN, follow: bool = True
) -> BufferedReader:
    """Open a regular file for reading.

    Args:
        path: the file, or (if ``follow``) a link to it.
        error: the class of what is raised.
        fix: what the sentence says that the user should do.
        follow: whether it may be a link.

    Raises:
        error: it is absent, no regular file, or cannot be opened.

    """
    flags = os.O_RDONLY | NO_WAIT | CLOSE_ON_EXEC | (0 if follow else NO_FOLLOW)
    try:
        fd = os.open(path, flags)
    except (OSError, ValueError) as fault:
        raise error(_why_not(path, fault, fix)) from None
    if what := _kind(os.fstat(fd)):
        os.close(fd)
        raise error(f"{path} is {what} and not a regular file; {fix}.")
    os.set_blocking(fd, True)
    return os.fdopen(fd, "rb")


def read_file(
    path: Path,
    *,
    most: int = SMALL,
    error: Raise = FileError,
    fix: str = AGAIN,
    follow: bool = True,
) -> bytes:
    """The bytes of a regular file that has at most ``most`` of them.

    Raises:
        error: as `open_file` does, or it is larger, or reading it fails.

    """
    with open_file(path, error=error, fix=fix, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= most:
            try:
                data = file.read(most + 1)
            except OSError as fault:
                raise error(_why_not(path, fault, fix)) from None
            size = max(size, len(data))
    if size > most:
        raise error(
            f"{path} has {format_size(size)}, more than the {format_size(most)} that such a file "
            f"may have; {fix}."
        )
    return data


def has_file(path: Path, *, error: Raise = FileError, fix: str = AGAIN) -> bool:
    """Whether a file is there. What is there but is no file that can be read is an error.

    Raises:
        error: there is a link that leads nowhere, a folder, a pipe, or what may not be looked at.

    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if not path.is_symlink():
            return False
        raise error(_why_not(path, FileNotFoundError(), fix)) from None
    except (OSError, ValueError) as fault:
        raise error(_why_not(path, fault, fix)) from None
    if kind := _kind(status):
        raise error(f"{path} is {kind} and not a regular file; {fix}.")
    return True


def with_plain_line_ends(text: str) -> str:
    """A text whose lines all end as they do on Unix, as Python reads text files."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_if_there(
    path: Path, *, most: int = SMALL, error: Raise = FileError, fix: str = AGAIN
) -> bytes | None:
    """The bytes of a small file, None where there is none.

    Raises:
        error: as `has_file` and `read_file` do.

    """
    return (
        read_file(path, most=most, error=error, fix=fix)
        if has_file(path, error=error, fix=fix)
        else None
    )


def read_text(file: Path) -> bytes:
    """A file of UTF-8 text.

    Raises:
        TextError: it cannot be read, or is none.

    """
    data = read_file(file, most=MOST_TEXT, error=TextError, fix="give a text file")
    try:
        data.decode()
    except UnicodeDecodeError:
        raise TextError(f"{file} is not UTF-8 text.") from None
    return data


def _kind(status: os.stat_result) -> str | None:
    """What something is that is no regular file."""
    for is_kind, name in (
        (stat.S_ISREG, None),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if is_kind(status.st_mode):
            return name
    return "a device"


def _why_not(path: Path, fault: Exception, fix: str) -> str:
    """The sentence on what cannot be opened."""
    if isinstance(fault, FileNotFoundError):
        try:
            target = path.readlink()
        except (OSError, ValueError):
            return f"{path} does not exist; {fix}."
        return f"{path} is a link to {target}, which does not exist; {fix}."
    reason = fault.strerror if isinstance(fault, OSError) else str(fault)
    return f"{path} cannot be read ({reason}); check the file and its permissions."
