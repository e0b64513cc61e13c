"""Workers that hang, and time that is up once they do, however long it takes them to get there."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Opens the pipe, which its children inherit, says that it hangs, and does.
HANG = """
def hang(pipe, children=0):
    import os, signal, subprocess, sys
    said = os.open(pipe, os.O_WRONLY)
    for _ in range(children):
        wait = "import signal; [signal.pause() for _ in iter(int, 1)]"
        subprocess.Popen([sys.executable, "-c", wait], pass_fds=[said])
    os.write(said, b"hanging")
    while True:
        signal.pause()
"""


class Hanging:
    """A named pipe that a worker says it hangs in; it is at its end when nobody is left."""

    def __init__(self, folder: Path) -> None:
        self.pipe = folder / "hanging"
        os.mkfifo(self.pipe)
        self._fd = -1

    def wait(self) -> None:
        """Until a worker hangs."""
        self._fd = os.open(self.pipe, os.O_RDONLY)
        assert os.read(self._fd, 100) == b"hanging"

    def wait_for_the_end(self) -> None:
        """Until the worker and its children are no more."""
        assert os.read(self._fd, 100) == b""
        os.close(self._fd)

    @contextmanager
    def then_time_is_up(self, limit: float) -> Iterator[None]:
        """Inside the block, a wait with this limit is over once a worker hangs, not before."""
        real = subprocess.Popen.communicate

        def communicate(
            process: Any,
            sent: Any = None,
            timeout: float | None = None,  # time: never waited for
        ) -> tuple[Any, Any]:
            if timeout != limit:
                return real(process, sent, timeout)
            process.stdin.write(sent)
            process.stdin.close()
            process.stdin = None
            self.wait()
            raise subprocess.TimeoutExpired(process.args, limit)

        with patch.object(subprocess.Popen, "communicate", communicate):
            yield
