"""What the converter's process may do: read, and write where it is told to."""

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn


class RefusedError(Exception):
    """What is asked cannot be done; the sentence ends what the parent says of it."""


_FORBIDDEN = (
    "socket.connect", "socket.getaddrinfo", "socket.bind", "subprocess.Popen", "os.system",
    "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.rename",
    "os.link", "os.symlink", "os.chmod", "os.truncate", "shutil.rmtree",
    "shutil.move", "ftplib.connect", "urllib.Request", "http.client.connect",
)  # fmt: skip
_writable: list[str] = [os.devnull]
_foreign: list[str] = []


def allow_writing(folder: str) -> None:
    """Let this process write in a folder, and put there what libraries want to put anywhere."""
    _writable.append(folder)
    tempfile.tempdir = folder


def mark_foreign(folder: str) -> None:
    """Let no code be run that lies in a folder."""
    _foreign.append(folder)


def remove(folder: str) -> None:
    """Remove a folder and what is in it, which `confine` lets no library do."""
    _writable.append(folder)
    for place, folders, files in os.walk(folder, topdown=False):
        for delete, names in ((Path.unlink, files), (Path.rmdir, folders)):
            for name in names:
                with suppress(OSError):
                    delete(Path(place, name))
    with suppress(OSError):
        Path(folder).rmdir()


def confine() -> None:
    """Forbid this process everything that describing a model does not need.

    An audit hook (PEP 578) sees it happen and raises; it cannot be taken away again. It guards
    against code that does what it should not without meaning harm, such as a library that asks a
    server. Code that came with a model is never loaded in the first place.
    """
    # Where transformers puts such code; refused before it would (see `library`).
    from transformers.utils import HF_MODULES_CACHE

    _foreign.append(str(HF_MODULES_CACHE))
    sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        path, mode, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
            _require_writable(path)
    elif event in ("os.mkdir", "os.rmdir"):
        _require_writable(arguments[0])
    elif event == "exec" and _foreign:
        name = getattr(arguments[0], "co_filename", "")
        if any(name.startswith(folder) for folder in _foreign):
            _refuse(f"it wanted to run {Path(name).name}, which came with the model")
    elif event.startswith(_FORBIDDEN):
        _refuse(f"it wanted {event}, which nothing that describes a model needs")


def _require_writable(path: Any) -> None:
    if not isinstance(path, int) and not os.fsdecode(path).startswith(tuple(_writable)):
        _refuse(f"it wanted to write {os.fsdecode(path)}")


def _refuse(what: str) -> NoReturn:
    raise RefusedError(what)
