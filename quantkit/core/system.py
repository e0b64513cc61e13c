"""What differs between operating systems, in one place.

quantkit runs on Linux and macOS. Windows has neither ``flock`` nor ``pread``; there it runs in WSL.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quantkit.core.errors import UnsupportedSystemError

# Flags of os.open that some systems lack; there the checks on what was opened have to do.
NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT: int = getattr(os, "O_NONBLOCK", 0)
CLOSE_ON_EXEC: int = getattr(os, "O_CLOEXEC", 0)


def require_supported() -> None:
    """Refuse a system that quantkit cannot run on.

    Raises:
        UnsupportedSystemError: it is Windows.

    """
    if sys.platform == "win32":
        raise UnsupportedSystemError(
            "quantkit does not run on Windows itself; install WSL (`wsl --install`) and run it "
            "there."
        )


def sync_data(fd: int) -> None:
    """Force a file's bytes to the disk; its times need not be."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:  # macOS
        os.fsync(fd)


def lock(fd: int) -> bool:
    """Take the one lock on an open file or folder, which ends with it; False if it is taken."""
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def hold_folder(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the one lock on a folder; where another process has it, wait for that.

    Args:
        folder: what is locked: no file is made, and nothing is left after a kill.
        waiting: called once before it waits.

    Raises:
        OSError: the folder cannot be opened.

    """
    import fcntl

    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | CLOSE_ON_EXEC)
    try:
        if not lock(fd):
            waiting()
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def user_cache() -> Path:
    """The folder of quantkit in the user's cache, which may not be there yet."""
    from platformdirs import user_cache_path

    return user_cache_path("quantkit", appauthor=False)


def most_resident_bytes() -> int:
    """The most memory that this process ever had, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
