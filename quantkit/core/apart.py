"""Work on somebody's file by somebody else's library, in a copy of this process that may die.

Libraries in Rust and C++ abort on some files, print pages before they do, or never come back. In a
copy none of that reaches the user: there is an answer, or one sentence on the file. A fork costs a
hundredth of what starting Python anew does, and the library is loaded already.
"""

import faulthandler
import os
import pickle
import select
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from quantkit.core.errors import QuantkitError
from quantkit.core.files import Raise
from quantkit.core.printable import one_line

T = TypeVar("T")

_PIECE = 2**20
_ANSWERED, _REFUSED, _FAILED = "answered", "refused", "failed"


def run_apart(work: Callable[[], T], name: object, *, seconds: float, error: Raise, fix: str) -> T:
    """What ``work`` returns in a copy of this process, which hears and sees nothing of it.

    Args:
        work: what to do; its answer is pickled.
        name: the file that it is about, the beginning of what is raised.
        seconds: how long it may take.
        error: the class of what is raised.
        fix: what the sentence says that the user should do.

    Raises:
        error: the copy died, took too long, or raised something that is no error of ours.
        QuantkitError: ``work`` raised it.

    """
    receive, send = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, none of which is needed
        pid = os.fork()
    if pid == 0:
        os.close(receive)
        _answer(work, send)
    os.close(send)
    raw = None
    try:
        raw = _receive(receive, time.monotonic() + seconds)
    finally:
        os.close(receive)
        if raw is None:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if raw is None:
        raise error(f"{name} keeps the library that reads it busy for {seconds:g} s; {fix}.")
    try:
        kind, value = pickle.loads(raw)  # noqa: S301 - what this very program wrote
    except (EOFError, pickle.UnpicklingError):
        kind, value = _FAILED, _how(status)
    if kind == _ANSWERED:
        answer: T = value
        return answer
    if kind == _REFUSED and isinstance(value, QuantkitError):
        raise value
    raise error(f"{name} cannot be used by the library that reads it ({value}); {fix}.")


def _answer(work: Callable[[], Any], send: int) -> None:
    """Be the copy: send the answer, and end."""
    try:
        faulthandler.disable()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        try:
            message: tuple[str, Any] = _ANSWERED, work()
        except QuantkitError as refusal:
            message = _REFUSED, refusal
        except BaseException as fault:  # noqa: BLE001 - a panic of Rust is no Exception
            lines = str(fault).strip().splitlines() or [type(fault).__name__]
            message = _FAILED, one_line(lines[0], 160)
        with os.fdopen(send, "wb") as pipe:
            pickle.dump(message, pipe)
    finally:
        os._exit(0)


def _receive(pipe: int, until: float) -> bytes | None:
    """Everything that comes through a pipe until it is closed; None if that takes too long."""
    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        part = os.read(pipe, _PIECE)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"it died of {signal.Signals(os.WTERMSIG(status)).name}"
    return "it ended without an answer"
