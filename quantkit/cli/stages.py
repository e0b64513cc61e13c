"""How far a build is, on a progress bar."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from quantkit.cli.output import note

if TYPE_CHECKING:
    from quantkit.api.reporter import Meter
    from quantkit.building.artifact import Progress

_VERBS = {"encode": "Encoding", "verify": "Verifying", "check": "Running"}


def tell_stages(meter: "Meter") -> "Callable[[Progress], None]":
    """What shows the progress of the engine on a bar."""

    def report(progress: "Progress") -> None:
        if progress.stage == "compile":
            note(progress.name)
            return
        verb = _VERBS[progress.stage]
        meter.show(f"{verb} {progress.name}".rstrip(), progress.done, progress.total)

    return report
