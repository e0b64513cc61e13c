"""What of a model llama.cpp's converter is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def silent(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class ConverterOptions:
    """What of a model is converted, and by whom.

    ``tree`` is a user's own llama.cpp, None for the pinned converter. ``projector``: its vision or
    audio part instead of its text part, in the type of that name, such as ``f16``. ``mtp``: whether
    layers that predict further tokens come along; None for what the converter does. ``say`` is
    told that something is fetched.
    """

    tree: Path | None = None
    projector: str | None = None
    mtp: bool | None = None
    say: Callable[[str], None] = silent

    @property
    def is_for_converter(self) -> bool:
        """Whether something is asked for that only the converter does."""
        return self.tree is not None or self.mtp is not None
