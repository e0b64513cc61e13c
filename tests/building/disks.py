"""A small disk: a file system of its own where this process may mount one, else an imitation."""

import errno
import os
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

MIB = 2**20

_Usage = namedtuple("_Usage", "total used free")


class SmallDisk:
    """A folder that takes only so much."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._size = 4 * MIB
        folder.mkdir()
        self.is_mounted = _mount("-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", folder)
        if not self.is_mounted:
            self._imitate(monkeypatch)

    @property
    def free(self) -> int:
        return shutil.disk_usage(self.folder).free

    def fill(self, but: int = 0) -> None:
        """Leave only so many bytes free."""
        with (self.folder / "filler").open("ab") as file:
            file.write(bytes(max(0, self.free - but)))

    def clear(self) -> None:
        (self.folder / "filler").unlink()

    def unmount(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", self.folder], check=True)

    def _imitate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Count what the files in the folder take up, and refuse to write more."""
        pwrite = os.pwrite

        def used() -> int:
            files = [path for path in self.folder.rglob("*") if path.is_file()]
            return sum(file.stat().st_blocks * 512 for file in files)

        def write(fd: int, data: memoryview, offset: int) -> int:
            if used() + len(data) > self._size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return pwrite(fd, data, offset)

        def disk_usage(_: Any) -> _Usage:
            return _Usage(self._size, used(), self._size - used())

        monkeypatch.setattr(os, "pwrite", write)
        monkeypatch.setattr(shutil, "disk_usage", disk_usage)


def mount_read_only(folder: Path) -> bool:
    """Cover a folder with a file system that cannot be written; False if this is not allowed."""
    return _mount("-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", folder)


def _mount(*arguments: str | Path) -> bool:
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
