"""Whether files here are those that a manifest describes."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from quantkit.core.errors import FileError
from quantkit.core.files import has_file, open_file

_READ = 4 * 2**20

# Told while files are read: what is read, bytes done of all files, bytes of all files.
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Expected:
    """A file as it should be; ``n_bytes`` is None where only its sha256 is known."""

    file: Path
    path: str
    n_bytes: int | None
    sha256: str


def find_fault(
    expected: Expected, *, hashed: bool = True, tell: Callable[[int], None] = lambda _n: None
) -> str | None:
    """What is wrong with a file, in a few words, or None.

    Args:
        expected: how it should be.
        hashed: read all of it, else look at its size only.
        tell: told the bytes of every piece that was read.

    """
    try:
        if not has_file(expected.file):
            return "missing"
        size = expected.file.stat().st_size
        if expected.n_bytes is not None and size != expected.n_bytes:
            return f"{size:,} bytes instead of {expected.n_bytes:,}"
        if not hashed:
            return None
        digest = hashlib.sha256()
        with open_file(expected.file) as stream:
            while data := stream.read(_READ):
                digest.update(data)
                tell(len(data))
    except (OSError, FileError) as error:
        return f"unreadable: {error.strerror if isinstance(error, OSError) else error}"
    return None if digest.hexdigest() == expected.sha256 else "another sha256"


def find_faults(
    files: Iterable[Expected],
    *,
    hashed: bool = True,
    report: Report = lambda _what, _done, _total: None,
) -> dict[str, str]:
    """What is wrong with files, by path; none for those that are right."""
    files = list(files)
    total = sum(file.n_bytes or 0 for file in files)
    done = 0
    faults = {}
    for file in files:

        def tell(n: int, path: str = file.path) -> None:
            nonlocal done
            done += n
            report(path, min(done, total), total)

        fault = find_fault(file, hashed=hashed, tell=tell)
        if fault is not None:
            faults[file.path] = fault
    return faults
