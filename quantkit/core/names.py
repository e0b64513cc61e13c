"""Names that come from files, and never lead out of the folder that they are for."""

from pathlib import Path, PureWindowsPath

from quantkit.core.errors import FileError
from quantkit.core.files import Raise
from quantkit.core.printable import quoted

_LONGEST = 255  # bytes of one name, on every common file system


def is_plain_name(name: object) -> bool:
    """Whether a value names a file in a folder: nothing that leads elsewhere on any system."""
    if not isinstance(name, str) or name in ("", ".", "..") or not name.isprintable():
        return False
    # Windows paths know both separators, and drives.
    return len(name.encode()) <= _LONGEST and PureWindowsPath(name).name == name


def resolve(
    folder: Path, name: object, origin: object, *, error: Raise = FileError, fix: str
) -> Path:
    """The file that a name from ``origin`` stands for: in ``folder``, or in a folder of it.

    Raises:
        error: the name is none, leads out of the folder, or goes through a link.

    """
    parts = name.split("/") if isinstance(name, str) else []
    if not parts or not all(map(is_plain_name, parts)):
        raise error(f"{origin} names the file {quoted(name)}, which is not in its folder; {fix}.")
    path = folder
    for part in parts[:-1]:
        path /= part
        if path.is_symlink():
            raise error(f"{origin} names {quoted(name)}, but {path} is a link; {fix}.")
    return path / parts[-1]
