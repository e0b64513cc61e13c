"""A user's own llama.cpp as the converter: whether it can be asked, and what it is.

Nothing in it is run here. A newer one may know an architecture that the pinned one does not.
"""

import re
from pathlib import Path

from quantkit.core.errors import ConverterError, QuantkitError
from quantkit.core.files import read_file

_NEEDED = ("conversion/__init__.py", "conversion/base.py", "gguf-py/gguf/__init__.py")
_REF = re.compile(r"refs/[\w][\w./-]*")
_REVISION = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_MOST_HEAD = 4096
_IN = "llama.cpp in "
_AT = re.compile(r" at [0-9a-f]{40,64}$")
_WITHOUT_PLACE = "llama.cpp of one's own"


def check_tree(tree: Path) -> Path:
    """The whole path of a folder of llama.cpp that has the parts of the converter.

    Raises:
        ConverterError: it has not; the sentence says what is missing.

    """
    tree = tree.absolute()
    if not tree.is_dir():
        raise ConverterError(f"{tree} is not a folder; give that of llama.cpp.")
    missing = [name for name in _NEEDED if not (tree / name).is_file()]
    if "conversion/base.py" in missing and (tree / "convert_hf_to_gguf.py").is_file():
        raise ConverterError(
            f"{tree} has convert_hf_to_gguf.py but no conversion/base.py: it is an older "
            "llama.cpp, all of whose converter is in that one file; give a newer one."
        )
    if missing:
        raise ConverterError(
            f"{tree} is no complete folder of llama.cpp ({', '.join(missing)} missing); give the "
            "one that convert_hf_to_gguf.py lies in."
        )
    return tree


def name_tree(tree: Path) -> str:
    """What a user's own converter is called: its folder, and its revision if git left one."""
    revision = read_revision(tree)
    return f"{_IN}{tree}" + (f" at {revision}" if revision else "")


def without_place(name: str) -> str:
    """What `name_tree` says of a tree, for others: not where it lies; other names as they are."""
    if not name.startswith(_IN):
        return name
    revision = _AT.search(name)
    return _WITHOUT_PLACE + (revision[0] if revision else "")


def is_own(name: str) -> bool:
    """Whether a converter with this name is a user's own."""
    return name.startswith((_IN, _WITHOUT_PLACE))


def read_revision(tree: Path) -> str | None:
    """The commit that a folder is checked out at, in hexadecimal; None where that cannot be told.

    Read from the files of git itself, because git runs programs that a repository names.
    """
    try:
        git = _git_folder(tree)
        head = _line(git / "HEAD")
        if not head.startswith("ref: "):
            return head if _REVISION.fullmatch(head) else None
        ref = head.removeprefix("ref: ").strip()
        if not _REF.fullmatch(ref) or ".." in ref:
            return None
        common = git / _line(git / "commondir") if (git / "commondir").is_file() else git
        for folder in (git, common):
            if (folder / ref).is_file():
                found = _line(folder / ref)
                return found if _REVISION.fullmatch(found) else None
        for line in read_file(common / "packed-refs").decode().splitlines():
            found, _, name = line.partition(" ")
            if name == ref and _REVISION.fullmatch(found):
                return found
    except (OSError, ValueError, QuantkitError):
        pass
    return None


def _git_folder(tree: Path) -> Path:
    """Where git keeps what it knows of a tree: ``.git``, or where a file of that name points."""
    git = tree / ".git"
    if git.is_dir():
        return git
    return tree / _line(git).removeprefix("gitdir: ")


def _line(path: Path) -> str:
    return read_file(path, most=_MOST_HEAD).decode().strip()
