"""Builds that something happens to when their journal has so many units, and never too late.

Whoever watches the journal from outside may find the build over. In the process itself the next
step waits for what happens.
"""

import os
import signal
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from quantkit.building.journal import Journal


def when_journaled(units: int, act: Callable[[], None]) -> Any:
    """A patch: call ``act`` once, when the journal has so many units."""
    real, acted = Journal.record, False

    def record(self: Journal, *arguments: Any) -> None:
        nonlocal acted
        real(self, *arguments)
        if len(self.finished) >= units and not acted:
            acted = True
            act()

    return patch.object(Journal, "record", record)


def kill_itself() -> None:
    """As ``kill -9`` would."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop_itself() -> None:
    """Until another process continues this one, which can wait for it to stop."""
    os.kill(os.getpid(), signal.SIGSTOP)
