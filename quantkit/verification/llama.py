"""llama.cpp in a process of its own, under a time limit.

llama.cpp aborts the whole process on some bad files and may crash on some machines, so nothing
here imports it: ``quantkit.verification.worker`` does, in a child that is allowed to die.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.core.child import child_environment
from quantkit.core.errors import NativeError

# A build that runs on every processor of its kind, AMX or not.
REINSTALL = (
    "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install --force-reinstall --no-cache-dir llama-cpp-python"
)
WORKER = (sys.executable, "-P", "-m", "quantkit.verification.worker")

# Why llama.cpp aborted, in its last words: a failed assertion or a C++ exception's message.
_REASON = re.compile(r"GGML_ASSERT\(.*|(?<=what\(\):  ).*|fatal error.*")


@dataclass(frozen=True, slots=True)
class Run:
    """How a worker ended.

    ``result`` is what it reported, None when it died or was stopped first; ``stage`` is what it
    was doing last; ``log`` is the end of what it wrote to stderr.
    """

    result: dict[str, Any] | None
    stage: str
    returncode: int
    timed_out: bool
    timeout: float
    log: str

    @property
    def signal(self) -> str | None:
        """The name of the signal that ended it, such as ``SIGSEGV``."""
        if self.returncode >= 0:
            return None
        try:
            return signal.Signals(-self.returncode).name
        except ValueError:
            return f"signal {-self.returncode}"

    @property
    def crashed(self) -> bool:
        """Whether it died by its own fault, not by our time limit or the system's OOM killer."""
        return not self.timed_out and self.signal not in (None, "SIGKILL")

    @property
    def failure(self) -> str | None:
        """One sentence on why there is no result, or None if there is one."""
        if self.timed_out:
            return f"llama.cpp timed out after {self.timeout:g} s while {self.stage}."
        if self.signal == "SIGKILL":
            return (
                f"llama.cpp was killed while {self.stage}, most likely because the machine "
                "ran out of memory."
            )
        if self.signal:
            return f"llama.cpp crashed with {self.signal} while {self.stage}{self._reason()}."
        if self.returncode:
            last = (self.log.strip() or "no reason given").splitlines()[-1]
            return (
                f"llama.cpp's process ended with code {self.returncode} while {self.stage} "
                f"({last})."
            )
        if self.result is None:
            return f"llama.cpp's process ended without a result while {self.stage}."
        return None

    def _reason(self) -> str:
        match = _REASON.search(self.log)
        return f" ({match[0].strip()})" if match else ""


def run_worker(
    request: Mapping[str, Any],
    *,
    timeout: float,
    command: Sequence[str] = WORKER,
    gpu: bool = False,
    tell: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Run:
    """Give ``request`` to a fresh worker and wait for its result, at most ``timeout`` seconds.

    The worker leads a process group of its own, which is killed whole when time is up or when
    the caller is interrupted. It sees the machine's GPUs only where ``gpu`` is set. ``tell`` is
    called with its messages as they come, in a thread of its own.

    Raises:
        NativeError: llama.cpp is not installed, or its libraries do not load.

    """
    line = json.dumps({**request, "timeout": timeout}).encode()
    reading, writing = os.pipe()
    messages = _Messages(reading, tell)
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=writing,
        stderr=subprocess.PIPE,
        env=_environment(gpu),
        cwd=Path(sys.executable).anchor,
        start_new_session=True,
    ) as process:
        os.close(writing)
        messages.start()
        timed_out = False
        try:
            _, err = process.communicate(line, timeout=timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            _kill(process)
            _, err = process.communicate()
        except BaseException:
            _kill(process)
            raise
    messages.join()
    stage, result = messages.stage, messages.result
    if native_error := messages.native_error:
        raise NativeError(native_error)
    return Run(
        result=None if timed_out else result,
        stage=stage,
        returncode=process.returncode,
        timed_out=timed_out,
        timeout=timeout,
        log=err[-20_000:].decode(errors="replace"),
    )


def _environment(gpu: bool) -> dict[str, str]:
    environment = child_environment()
    # On a machine that is busy with something else, OpenMP threads that spin while they wait for
    # each other make a small model a hundred times slower.
    environment["OMP_WAIT_POLICY"] = "passive"
    environment["GGML_NO_BACKTRACE"] = "1"  # ggml would start gdb when it aborts
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # nothing runs there, so wake none
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        environment["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
    return environment


def _kill(process: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class _Messages(threading.Thread):
    """Reads a worker's lines until it ends, and keeps what they say."""

    def __init__(self, reading: int, tell: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(daemon=True)
        self._reading, self._tell = reading, tell
        self.stage = "starting"
        self.result: dict[str, Any] | None = None
        self.native_error: str | None = None

    def run(self) -> None:
        with os.fdopen(self._reading, "rb") as lines:
            for line in lines:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue  # the line that it was writing when it was stopped
                if isinstance(message, dict):
                    self.stage = message.get("stage", self.stage)
                    self.result = message.get("result", self.result)
                    self.native_error = message.get("native_error", self.native_error)
                    self._tell(message)
