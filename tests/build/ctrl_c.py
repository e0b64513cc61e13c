"""``python -m tests.build.ctrl_c STAGE SECONDS ARGUMENT...``: quantkit, and Ctrl-C while it runs.

The signal comes SECONDS after the build has reported STAGE for the first time, and goes to the
whole process group, as from a terminal; so the group must be of this process's own. Slabs are
small, that there may be many.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from quantkit.build import engine
from quantkit.build.engine import Artifact, Progress
from quantkit.build.work import Work
from quantkit.cli.main import main
from tests.build.builds import small_slabs

SLAB = 2**12


def _interrupt() -> None:
    os.killpg(os.getpgrp(), signal.SIGINT)


def _interrupted_build(stage: str, seconds: float) -> Any:
    real, begun = engine.build, False

    def build(work: Work, out: Path, *, report: Any, **options: Any) -> list[Artifact]:
        def watch(progress: Progress) -> None:
            nonlocal begun
            if progress.stage == stage and not begun:
                begun = True
                if seconds:
                    threading.Timer(seconds, _interrupt).start()
                else:
                    _interrupt()
            report(progress)

        return real(work, out, report=watch, **options)

    return build


if __name__ == "__main__":
    stage, seconds, *arguments = sys.argv[1:]
    engine.build = _interrupted_build(stage, float(seconds))
    sys.argv = ["quantkit", *arguments]
    with small_slabs(SLAB):
        main()
