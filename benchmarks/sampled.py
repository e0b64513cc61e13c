"""Run ``quantkit`` and see where its threads spend their time.

``python benchmarks/sampled.py REPORT ARGUMENT...`` runs ``quantkit ARGUMENT...`` and writes to
REPORT, as JSON, for each kind of thread the seconds that it spent in each function. A sampling
thread looks at every stack a hundred times a second; time counts for the innermost function of
quantkit's on it, waiting included.
"""

import json
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import TypeAlias

import quantkit
from quantkit.cli.main import main

_INTERVAL = 0.01
_PACKAGE = Path(quantkit.__file__).parent

Seconds: TypeAlias = defaultdict[str, defaultdict[str, float]]


def sample(seconds: Seconds, finished: threading.Event) -> None:
    last = time.perf_counter()
    while not finished.wait(_INTERVAL):
        now = time.perf_counter()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            where = innermost(frame)
            if where is not None:
                seconds[names.get(ident, "?").partition("_")[0]][where] += now - last
        last = now


def innermost(frame: FrameType | None) -> str | None:
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE):
            return f"{path.relative_to(_PACKAGE)}:{frame.f_code.co_name}"
        frame = frame.f_back
    return None


if __name__ == "__main__":
    report, *sys.argv[1:] = sys.argv[1:]
    seconds: Seconds = defaultdict(lambda: defaultdict(float))
    finished = threading.Event()
    sampler = threading.Thread(target=sample, args=(seconds, finished))
    sampler.start()
    try:
        main()
    finally:
        finished.set()
        sampler.join()
        Path(report).write_text(json.dumps(seconds))
