"""Where the data that ships with quantkit lies: ``profiles/`` beside the code."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent.parent


@cache
def profiles_folder() -> Path:
    """The folder of TOML data: inside an installed package, beside it in a source tree."""
    inside = _PACKAGE / "profiles"
    return inside if inside.is_dir() else _PACKAGE.parent / "profiles"


@cache
def load_profile(name: str) -> dict[str, Any]:
    """The TOML document ``profiles/<name>``. Callers must not change it."""
    return tomllib.loads((profiles_folder() / name).read_text(encoding="utf-8"))


def profile_names(kind: str) -> tuple[str, ...]:
    """The names of the profiles of a kind, ``hardware`` or ``models``, in order."""
    return tuple(sorted(file.stem for file in (profiles_folder() / kind).glob("*.toml")))


@cache
def load_vendor_manifest() -> dict[str, Any]:
    """The llama.cpp that is pinned: ``vendor/manifest.toml``, a profile in an installed package."""
    inside = profiles_folder() / "vendor.toml"
    path = inside if inside.is_file() else _PACKAGE.parent / "vendor" / "manifest.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))
