"""The output folder: locked, checked for room, filled under partial names, renamed at the end."""

import errno
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from quantkit.core.errors import NoSpaceError, OutputError
from quantkit.core.system import lock, sync_data
from quantkit.core.tensors import Bytes, as_array
from quantkit.core.units import format_size
from quantkit.core.writing import is_own, open_to_resume, refuse_links
from quantkit.core.writing import sync_folder as sync_folder
from quantkit.formats.layout import Layout
from quantkit.formats.place import Place

PARTIAL = ".partial"
REJECTED = ".rejected"
_LONGEST_NAME = 255  # bytes of a file's name, in all file systems of Linux and macOS
_LONGEST_ENDING = ".partial-smoke"
_TRIAL = "-smoke"
_NOT_HERE = -1  # instead of a file descriptor


def default_folder(base_name: str, *, only_gguf: bool) -> Path:
    """Where a build goes that names no folder."""
    return Path(f"{base_name}-GGUF" if only_gguf else f"{base_name}-quants")


def require_writable(out: Path, *, overwrite: bool) -> None:
    """Refuse a file's place where none can be written, or where one lies, unless ``overwrite``.

    Raises:
        OutputError: so it is.

    """
    require_place(out.absolute().parent)
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise OutputError(f"{out} is a device and no file; name another with -o.")
    if out.exists() and not out.is_dir() and not overwrite:
        raise OutputError(
            f"{out} already exists; --overwrite replaces it, or name another file with -o."
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an output folder, made if absent, against every other build.

    The lock is on the folder itself, so it leaves no file and ends with the process.

    Raises:
        OutputError: it cannot be made or written, or another build holds it.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileExistsError:
        raise OutputError(f"{folder} is a file; choose a folder with -o.") from None
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be created: {error.strerror}; choose another folder with -o."
        ) from None
    try:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{folder} is not writable; choose another folder with -o.")
        if not lock(fd):
            raise OutputError(
                f"Another build is writing to {folder}; wait for it or choose another with -o."
            )
        yield
    finally:
        os.close(fd)


def require_place(folder: Path) -> None:
    """Refuse an output folder that cannot be made or written, before any work, and leave none.

    Raises:
        OutputError: it is a file or would lie in one, or its file system takes no folder.

    """
    place = _existing_part(folder)
    missing = folder.absolute().relative_to(place).parts
    if not place.is_dir():
        what = f"{folder} cannot be created: {place}" if missing else f"{folder}"
        raise OutputError(f"{what} is a file; choose a folder with -o.")
    try:  # rights do not tell: /proc takes no folder, whatever they are
        if missing:
            (place / missing[0]).mkdir()
            (place / missing[0]).rmdir()
        else:
            Path(tempfile.mkdtemp(prefix=".quantkit-", dir=place)).rmdir()
    except OSError as error:
        what = "cannot be made" if missing else "is not writable"
        raise OutputError(
            f"{folder} {what} ({error.strerror}); choose another folder with -o."
        ) from None


def check_space(folder: Path, needed: int) -> None:
    """Refuse a build that its file system has no room for, before the first byte.

    Raises:
        NoSpaceError: fewer than ``needed`` bytes are free.

    """
    free = room_in(folder)
    if free < needed:
        raise NoSpaceError(
            f"{folder} has {format_size(free)} free and the build needs {format_size(needed)} "
            f"({needed} bytes); free {format_size(needed - free)} or choose another disk with -o."
        )


def room_in(folder: Path) -> int:
    """The bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(_existing_part(folder)).free


def _existing_part(folder: Path) -> Path:
    """The folder, which may be yet to be made, or the nearest one above it that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


@contextmanager
def naming_failures(folder: Path, missing: Callable[[], int]) -> Iterator[None]:
    """Turn what the system refuses into a sentence.

    Args:
        folder: where the build writes.
        missing: tells how many bytes are still to be written.

    Raises:
        NoSpaceError: the disk or the quota is full.
        OutputError: something else failed.

    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"The build in {folder} failed: {error.strerror or error}; fix that and run the "
                "same command to resume."
            ) from error
        needed = missing()
        raise NoSpaceError(
            f"The disk of {folder} is full: the build still needs up to {format_size(needed)} "
            f"({needed} bytes); free that much and run the same command to resume."
        ) from None


@contextmanager
def working_folder(folder: Path, missing: int) -> Iterator[None]:
    """Hold a folder for what must survive a kill, and delete it once all is done.

    Raises:
        OutputError: it cannot be made or written, or another run holds it.

    """
    refuse_links(folder)
    with locked(folder), naming_failures(folder, lambda: missing):
        yield
        shutil.rmtree(folder)


def check_names(layouts: Iterable[Layout]) -> None:
    """Refuse names that a file system cannot take, before the first byte.

    Raises:
        OutputError: one is longer than file names can be, with what is added while it is built.

    """
    for layout in layouts:
        names = [layout.folder or "", *(file.name for file in layout.files)]
        longest = max(names, key=lambda name: len(os.fsencode(name)))
        most = _LONGEST_NAME - len(_LONGEST_ENDING)
        if len(os.fsencode(longest)) > most:
            raise OutputError(
                f"{longest[:40]}... would be the name of a file, and is longer than the {most} "
                "bytes that fit; give a shorter one with --name."
            )


class PartialArtifact:
    """The files of one artifact while they are being written, under partial names."""

    is_here = True
    """Whether its files lie in one place, where a check can read them."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.layout = layout
        self.completed: list[tuple[Place, int]] = []
        self._folder = folder
        self.final = folder / (layout.folder or layout.files[0].name)
        self.partial = self.final.with_name(self.final.name + PARTIAL)
        inside = self.partial if layout.folder else None
        self.paths = [inside / file.name if inside else self.partial for file in layout.files]
        self._scratch: list[Path] = []
        self._fds: list[int] = []

    @property
    def missing(self) -> int:
        """Bytes that are still to be written; those of sparse files count where they are there."""
        if self.final.exists():
            return 0
        there = sum(path.stat().st_blocks * 512 for path in self.paths if is_own(path))
        return max(0, sum(file.n_bytes for file in self.layout.files) - there)

    @property
    def _in_a_link(self) -> bool:
        """Whether its folder of shards is none of its own."""
        return bool(self.layout.folder) and self.partial.is_symlink()

    def where(self, _file: int) -> dict[str, str]:
        """What the manifest says of where a file is, if it is not here."""
        return {}

    def absent(self) -> set[int]:
        """The files that are not there, by number: nothing that was written to them is left."""
        if self._in_a_link:
            return set(range(len(self.paths)))
        return {number for number, path in enumerate(self.paths) if not is_own(path)}

    def discard(self) -> None:
        """Delete what there is of it."""
        remove(self.partial)

    @property
    def runnable(self) -> Path:
        """What a check is given: a GGUF's first file, or the whole folder."""
        return self.partial if self.layout.opened == self.layout.folder else self.paths[0]

    def open(self) -> None:
        """Open the files at their full size (sparse), keeping what they hold."""
        if self._in_a_link:
            remove(self.partial)
        for path, file in zip(self.paths, self.layout.files, strict=True):
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True)
            if not is_own(path):
                remove(path)  # a link, which leads to what is somebody else's
            fd = open_to_resume(path)
            self._fds.append(fd)
            os.ftruncate(fd, file.n_bytes)

    def reopen(self, *, all_here: bool = True) -> None:
        """Open the files that another process has made at their full size.

        Args:
            all_here: if not, some of them lie on other machines, and nobody writes to them here.

        """
        for path in self.paths:
            is_here = all_here or path.exists()
            self._fds.append(open_to_resume(path) if is_here else _NOT_HERE)

    def write(self, places: Sequence[Place], pieces: Sequence[memoryview]) -> list[int]:
        """Write bytes at their places; a CRC-32 of each."""
        for place, piece in zip(places, pieces, strict=True):
            self._write_all(place.file, place.offset, piece)
        return [zlib.crc32(piece) for piece in pieces]

    def sync(self) -> None:
        """Force what was written to the disk."""
        for fd in self._fds:
            if fd != _NOT_HERE:
                sync_data(fd)

    def complete(self) -> None:
        """Write what a folder's format makes of whole matrices, and settle the last sizes.

        A later run does this anew: it only reads what slabs have left.
        """
        own = self.layout.own
        if own is None:
            return
        known, late = {}, {}
        for tensor, data in own.complete(self._read):
            if tensor.late:
                known[tensor.name], late[tensor.name] = tensor, data
            else:
                self._write_whole(own.place_of(tensor.name), data)
        self.layout = own.finished(known)
        assert self.layout.own is not None  # noqa: S101 - it is the same, finished
        for name, data in late.items():
            self._write_whole(self.layout.own.place_of(name), data)
        count = len(self.layout.files)
        self.paths, self._scratch = self.paths[:count], self.paths[count:]
        for fd, file in zip(self._fds[:count], self.layout.files, strict=True):
            os.ftruncate(fd, file.n_bytes)

    def write_header(self, index: int) -> None:
        """Write the header of one file that has everything else."""
        self._write_all(index, 0, memoryview(self.layout.files[index].header))
        sync_data(self._fds[index])

    def write_headers(self) -> None:
        """Write the headers, last of all: until now no program takes the files for an artifact."""
        for index, file in enumerate(self.layout.files):
            self._write_all(index, 0, memoryview(file.header))
        self.sync()

    def close(self) -> None:
        """Close the files."""
        while self._fds:
            fd = self._fds.pop()
            if fd != _NOT_HERE:
                os.close(fd)

    def publish(self) -> Path:
        """Rename to the final name, durably; the path of what was renamed."""
        self._drop_scratch()
        refuse_links(self.final)
        self.partial.rename(self.final)
        sync_folder(self._folder)
        return self.final

    def reject(self) -> Path:
        """Rename to a name that says that the artifact failed, and return it."""
        self._drop_scratch()
        rejected = self.final.with_name(self.final.name + REJECTED)
        remove(rejected)
        self.partial.rename(rejected)
        return rejected

    def _drop_scratch(self) -> None:
        for path in self._scratch:
            remove(path)

    def _read(self, place: Place) -> Bytes:
        return as_array(os.pread(self._fds[place.file], place.n_bytes, place.offset))

    def _write_whole(self, place: Place, data: Bytes) -> None:
        (crc,) = self.write([place], [data.data])
        self.completed.append((place, crc))

    def _write_all(self, index: int, offset: int, data: memoryview) -> None:
        fd, done = self._fds[index], 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], offset + done)


def trial_of(partial: Path) -> Path:
    """Where a GGUF of an unfinished folder lies while it is run, which shows whether it can be."""
    return partial.with_name(partial.name + _TRIAL)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder of files; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
