"""A build whose converter's process is killed at one of the messages that it is sent."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from quantkit.building.work import prepare
from quantkit.checkpoint.converter.channel import Channel
from quantkit.checkpoint.converter.process import ConverterProcess
from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.errors import ConverterEndedError
from quantkit.planning.quants import find_quants
from tests.building.builds import artifacts_in, build_work, names_in, small_slabs
from tests.large_experts import large_experts

QUANTS = ("q8_0", "q4_k_m")


def fp8_experts(folder: Path) -> Path:
    """A checkpoint whose matrices the converter computes."""
    return large_experts(folder, hidden=256, width=256, experts=4, fp8=True)


def describe_and_build(source: Path, out: Path) -> None:
    checkpoint = open_checkpoint(source)
    assert checkpoint.description is not None
    try:
        with small_slabs(2**14):
            build_work(prepare(checkpoint, find_quants(QUANTS)), out)
    finally:
        checkpoint.description.rows.close()


def count_messages(source: Path, out: Path) -> int:
    """Build undisturbed; how many messages the converter's process was sent meanwhile."""
    sent = 0

    def count(_: int) -> None:
        nonlocal sent
        sent += 1

    with _at_every_message(count):
        describe_and_build(source, out)
    return sent


def kill_and_resume(source: Path, out: Path, at: int, whole: dict[str, str]) -> None:
    """Kill the process before message ``at``: one sentence, and the same build goes on."""
    left = at

    def kill(pid: int) -> None:
        nonlocal left
        if left == 0:
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it may not answer any more
        left -= 1

    with (
        _at_every_message(kill),
        pytest.raises(ConverterEndedError, match=r"ended .*SIGKILL.*run the same"),
    ):
        describe_and_build(source, out)
    assert not artifacts_in(out)
    describe_and_build(source, out)
    assert artifacts_in(out) == whole
    assert names_in(out) == {*whole, "quantkit.json"}


@contextmanager
def _at_every_message(act: Callable[[int], None]) -> Iterator[None]:
    """Call ``act`` with the number of the converter's process before it is sent a message."""
    send, start = Channel.send, ConverterProcess.__init__
    pids: dict[int, int] = {}

    def starting(self: ConverterProcess, *arguments: Any) -> None:
        start(self, *arguments)
        pids[id(self._channel)] = self.pid

    def sending(self: Channel, message: dict[str, Any], data: Any = b"") -> None:
        act(pids[id(self)])
        send(self, message, data)

    with (
        patch.object(ConverterProcess, "__init__", starting),
        patch.object(Channel, "send", sending),
    ):
        yield
