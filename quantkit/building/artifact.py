"""What a build reports and leaves: progress, the check of an artifact, the artifact."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.formats.layout import Layout


@dataclass(frozen=True, slots=True)
class Progress:
    """What a build reports while it runs.

    ``stage`` is ``compile``, ``encode``, ``verify`` or ``check``.
    """

    stage: str
    done: int
    total: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """What the caller made of an artifact before it gets its final name."""

    ok: bool
    verdict: str
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A built artifact: its final path, or that of the rejected one, and its manifest entry."""

    layout: Layout
    path: Path
    entry: Mapping[str, Any]
    check: Check | None
    fresh: bool
    recognized: str = ""
    """How one that was there already was compared with its manifest."""

    @property
    def name(self) -> str:
        """What the manifest calls it."""
        return self.layout.name

    @property
    def n_bytes(self) -> int:
        """Bytes of its files."""
        return self.layout.n_bytes

    @property
    def bits_per_weight(self) -> float:
        """Mean over all weights."""
        return self.layout.plan.bits_per_weight

    @property
    def verdict(self) -> str:
        """What its smoke test found; ``not run`` where it had none."""
        found = (self.entry.get("smoke") or {}).get("verdict", "not run")
        return str(found)

    @property
    def is_sound(self) -> bool:
        """Whether it passed its check, if it had one."""
        return self.check is None or self.check.ok
