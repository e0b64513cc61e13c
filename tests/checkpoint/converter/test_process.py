"""A converter that says nothing any more is ended, and one that dies is told of."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint.converter import process
from quantkit.checkpoint.converter.channel import Channel
from quantkit.checkpoint.converter.process import ConverterProcess
from quantkit.checkpoint.converter.provision import Converter
from quantkit.core.errors import ConverterEndedError, ConverterError


@pytest.fixture
def converter(tmp_path: Path) -> Converter:
    """One of which there is nothing: its process says so when it is asked, if it gets to that."""
    return Converter(tmp_path / "tree", tmp_path / "packages", "none")


def no_rows(name: str, first: int, count: int) -> Any:
    raise AssertionError((name, first, count))


def test_silence_ends_it(converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.5)
    silent = ConverterProcess(converter)
    os.kill(silent.pid, signal.SIGSTOP)

    with pytest.raises(ConverterError, match=r"said nothing for 0\.00833333 minutes"):
        silent.ask({"ask": "describe"}, no_rows)

    with pytest.raises(ProcessLookupError):
        os.kill(silent.pid, 0)


def test_death_is_told(converter: Converter) -> None:
    dying = ConverterProcess(converter)
    os.kill(dying.pid, signal.SIGKILL)
    try:
        with pytest.raises(ConverterEndedError, match=r"ended without an answer \(SIGKILL\)"):
            dying.ask({"ask": "describe"}, no_rows)
    finally:
        dying.close()


def test_folder_of_one_that_was_killed_is_removed(converter: Converter, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    (folder / "model").mkdir(parents=True)
    (folder / "header.gguf").write_bytes(b"GGUF")
    (folder / "model" / "config.json").symlink_to(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{}")
    left = ConverterProcess(converter, folder)

    left._channel.close()  # which is all that it sees of a `kill -9` of ours

    left._process.wait(timeout=60)  # time: one that hangs ends
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_message_that_does_not_come() -> None:
    receive, send = os.pipe()
    channel = Channel(receive, send, patience=0.0)
    try:
        with pytest.raises(TimeoutError):
            channel.receive()
        channel.send({"said": 1}, b"bytes")
        assert channel.receive() == ({"said": 1}, bytearray(b"bytes"))
    finally:
        channel.close()
