"""``python -m tests.building.ctrl_c MOMENT SIGNAL ARGUMENT...``: quantkit, and a signal meanwhile.

The signal comes when the build reports a stage for the first time (``encode``, ``verify``,
``check``), while a thread is encoding a slab (``slab``), or while llama.cpp generates
(``generate``). Whatever is interrupted waits for it, so no moment can be missed. It goes to the
whole process group, as from a terminal; so the group must be of this process's own. Slabs are
small, that there may be many.
"""

import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from quantkit.building import engine
from quantkit.building.artifact import Artifact, Progress
from quantkit.building.encode import Encoder
from quantkit.building.executor import Threads
from quantkit.building.work import Work
from quantkit.cli.main import main
from quantkit.verification.llama import run_worker
from tests.building.builds import small_slabs

SLAB = 2**12
_SLABS_BEFORE = 5

# llama.cpp's process, which waits for its end once it generates.
_WORKER = """
import os, signal, sys
from quantkit.verification import checks, worker

real = checks.check_model

def check_model(files, *, begin, **options):
    def begin_and_wait(stage):
        begin(stage)
        if stage == "generating":
            os.killpg(os.getpgid(os.getppid()), int(sys.argv[1]))
            while True:
                signal.pause()

    real(files, begin=begin_and_wait, **options)

checks.check_model = check_model
worker.main()
"""


def _at_report(stage: str, number: int) -> Any:
    real, sent = engine.build, False

    def build(work: Work, out: Path, *, report: Any, **options: Any) -> list[Artifact]:
        def watch(progress: Progress) -> None:
            nonlocal sent
            if progress.stage == stage and not sent:
                sent = True
                os.killpg(os.getpgrp(), number)
            report(progress)

        return real(work, out, report=watch, **options)

    return patch.object(engine, "build", build)


def _in_a_slab(number: int) -> Any:
    cancelled = threading.Event()
    real_encode, real_cancel = Encoder.encode, Threads.cancel
    slabs = 0

    def encode(self: Encoder, *arguments: Any) -> Any:
        nonlocal slabs
        slabs += 1
        if slabs == _SLABS_BEFORE:
            os.killpg(os.getpgrp(), number)
            cancelled.wait()
        return real_encode(self, *arguments)

    def cancel(self: Threads) -> None:
        cancelled.set()
        real_cancel(self)

    return patch.multiple(Encoder, encode=encode), patch.multiple(Threads, cancel=cancel)


def _while_generating(number: int) -> Any:
    command = [sys.executable, "-P", "-c", _WORKER, str(number)]
    return patch("quantkit.verification.smoke.run_worker", partial(run_worker, command=command))


if __name__ == "__main__":
    moment, name, *arguments = sys.argv[1:]
    number = signal.Signals[name].value
    if moment == "slab":
        for change in _in_a_slab(number):
            change.start()
    elif moment == "generate":
        _while_generating(number).start()
    else:
        _at_report(moment, number).start()
    sys.argv = ["quantkit", *arguments]
    with small_slabs(SLAB):
        main()
