"""What a command costs: wall and processor time, memory, disk.

``measure`` runs the command under this file as a script of its own, a process so small that its
size cannot pass for the command's: the kernel counts what a process holds between fork and exec,
its parent's pages, into its peak memory.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.1
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command and all of its child processes took.

    ``peak_memory`` is the resident memory in bytes of the largest of these processes at its
    peak, pages of mapped files included; ``peak_together`` that of all of them at once, each page
    counted once, in samples; ``peak_disk`` is what a folder held at most.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_memory: int
    peak_disk: int
    output: str
    peak_together: int = 0


class CommandError(RuntimeError):
    """A measured command failed."""


def measure(command: Sequence[str | Path], folder: Path | None = None) -> Cost:
    """Run a command and measure it. ``folder`` is the one whose size is watched.

    Raises:
        CommandError: its status is not 0; the message has the end of what it printed.

    """
    with (
        tempfile.NamedTemporaryFile("r", prefix="cost-") as report,
        tempfile.TemporaryFile("w+", prefix="output-") as output,
        tempfile.TemporaryFile("w+", prefix="notes-") as notes,
    ):
        peak_disk = peak_together = 0
        with subprocess.Popen(
            [sys.executable, "-IS", __file__, report.name, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=notes,
            start_new_session=True,
        ) as process:
            try:
                spent = 0.0
                while process.poll() is None:
                    # Samples, of which none may take much of what is measured: the pages of a
                    # large process take a while to count.
                    time.sleep(max(_POLL_SECONDS, 50 * spent))  # time: between samples
                    began = time.monotonic()  # time: how often to look
                    if folder is not None:
                        peak_disk = max(peak_disk, disk_use(folder))
                    peak_together = max(peak_together, memory_of(process.pid))
                    spent = time.monotonic() - began  # time: how often to look
            except BaseException:
                os.killpg(process.pid, signal.SIGTERM)
                raise
        for stream in (output, notes):
            stream.seek(0)
        if process.returncode != 0:
            end = "\n".join((output.read() + notes.read()).splitlines()[-20:])
            raise CommandError(f"status {process.returncode} from {command[0]}; it printed\n{end}")
        cost = json.load(report)
        return Cost(**cost, peak_disk=peak_disk, output=output.read(), peak_together=peak_together)


def unwind_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that no command or folder outlives it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def memory_of(pid: int) -> int:
    """Bytes of memory of a process and those that it started, each page counted once; 0 elsewhere.

    Linux divides pages that several processes have among them (``Pss`` in ``smaps_rollup``).
    """
    total = 0
    left = [pid]
    while left:
        process = Path("/proc", str(left.pop()))
        try:
            lines = (process / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
            for thread in (process / "task").iterdir():
                left += map(int, (thread / "children").read_text().split())
        except OSError:  # it has ended, or this is no Linux
            continue
    return total


def disk_use(folder: Path) -> int:
    """Bytes that a folder's files take up on the disk; holes in files count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(parent, name)).st_blocks * 512
            except FileNotFoundError:  # renamed or deleted since it was listed
                continue
    return total


def _run(report: str, *command: str) -> int:
    start = time.perf_counter()  # time: reported, no test judges it
    status = subprocess.call(command)
    wall_seconds = time.perf_counter() - start  # time: as above
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = {
        "wall_seconds": wall_seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_memory": used.ru_maxrss * _MAXRSS_UNIT,
    }
    Path(report).write_text(json.dumps(cost))
    return status


if __name__ == "__main__":
    sys.exit(_run(*sys.argv[1:]))
