"""Folders in the user's cache that are there as a whole, or made anew.

A folder is made beside its place and renamed. Its stamp says what it was made for and what is in
it, so that one that somebody cleared in part, or a disk lost a piece of, is not used but mended.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from quantkit.core.errors import ConverterError, QuantkitError
from quantkit.core.files import read_file
from quantkit.core.system import hold_folder
from quantkit.core.writing import write_file

STAMP = ".quantkit"
_PARTIAL = ".partial-"
_BYTECODE = "__pycache__"  # written by whoever imports from the folder, at any time


@dataclass(frozen=True, slots=True)
class Kept:
    """A folder of the cache, and how it is made.

    ``pin`` says what it is made of: one that was made of anything else does not count. ``make``
    fills a new folder, given a second one for what it needs meanwhile. ``sealed`` folders are small
    enough to read each file again at every use; of others names and sizes are compared.
    """

    folder: Path
    pin: str
    make: Callable[[Path, Path], None]
    sealed: bool = False

    def is_whole(self) -> bool:
        """Whether it is there as it was made."""
        try:
            stamp = read_file(self.folder / STAMP, follow=False)
            return stamp == self.stamp(self.folder)
        except (OSError, QuantkitError):
            return False

    def stamp(self, folder: Path) -> bytes:
        """What the stamp of a folder says if all of it is there: pin, and sha256 of its listing."""
        listing = hashlib.sha256()
        for path in sorted(_files(folder)):
            listing.update(f"{os.lstat(path).st_size} {os.path.relpath(path, folder)}\n".encode())
            if self.sealed:
                listing.update(hashlib.sha256(read_file(Path(path), follow=False)).digest())
        return f"{self.pin} {listing.hexdigest()}\n".encode()


def provide(
    cache: Path, wanted: Sequence[Kept], making: Callable[[], None], waiting: Callable[[], None]
) -> None:
    """Make those folders of ``cache`` that are not whole. One process does, others wait for it.

    A cache that is whole is only read, so it may be another user's.

    Args:
        cache: the folder that they all lie in.
        wanted: the folders.
        making: called once before the first is made.
        waiting: called before waiting for another process.

    Raises:
        ConverterError: the cache cannot be written.
        QuantkitError: what ``make`` raises.

    """
    if all(kept.is_whole() for kept in wanted):
        return
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with hold_folder(cache, waiting):
            missing = [kept for kept in wanted if not kept.is_whole()]
            if missing:
                for left in cache.glob(_PARTIAL + "*"):  # by a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
                making()
            for kept in missing:
                _make(cache, kept)
    except OSError as error:
        raise ConverterError(
            f"{cache}, where llama.cpp's converter is kept, cannot be written "
            f"({error.strerror or error}); make room or set XDG_CACHE_HOME to another folder."
        ) from None


def _make(cache: Path, kept: Kept) -> None:
    # A name of its own: the pip of a process that was killed may still be writing to the last one.
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=cache))
    made, scratch, old = partial / "made", partial / "scratch", partial / "old"
    try:
        made.mkdir()
        scratch.mkdir()
        kept.make(made, scratch)
        write_file(made / STAMP, kept.stamp(made))
        with suppress(FileNotFoundError):
            kept.folder.rename(old)
        made.rename(kept.folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _files(folder: Path) -> Iterator[str]:
    """All files and links below a folder but its stamp and bytecode; an unreadable one raises."""

    def fail(error: OSError) -> None:
        raise error

    stamp = str(folder / STAMP)
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if name != _BYTECODE]
        paths = [os.path.join(parent, name) for name in names + folders]  # noqa: PTH118 - thousands
        yield from (path for path in paths[: len(names)] if path != stamp)
        yield from (path for path in paths[len(names) :] if os.path.islink(path))  # noqa: PTH114
