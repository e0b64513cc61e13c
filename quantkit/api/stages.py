"""How far the engine is, as a meter shows it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quantkit.api.reporter import Reporter

if TYPE_CHECKING:
    from quantkit.building.artifact import Progress

_VERBS = {"encode": "Encoding", "verify": "Verifying", "check": "Running"}


@contextmanager
def stages(tell: Reporter) -> "Iterator[Callable[[Progress], None]]":
    """What the engine reports to, inside the ``with`` block."""
    meter = tell.open_meter("")

    def report(progress: "Progress") -> None:
        if progress.stage == "compile":
            tell.note(progress.name)
            return
        verb = _VERBS[progress.stage]
        meter.show(f"{verb} {progress.name}".rstrip(), progress.done, progress.total)

    try:
        yield report
    finally:
        meter.close()
