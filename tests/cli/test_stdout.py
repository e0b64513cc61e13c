"""Output that nobody takes: one sentence and exit code 1, whatever the command."""

import io
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from quantkit.cli.app import run
from tests.cli.command import Outcome
from tests.parity.cases import TRAINED

MODEL = str(TRAINED / "tiny-mistral")
COMMANDS: dict[str, tuple[str, ...]] = {
    "a table": ("inspect", MODEL),
    "JSON": ("inspect", MODEL, "--json"),
    "help": ("--help",),
    "help of a command": ("build", "--help"),
    "a version": ("--version",),
    "a plan": ("build", MODEL, "-q", "q8_0", "--dry-run"),
    "memory": ("fit", "--hardware"),
}


class Full(io.StringIO):
    """A file on a full disk: a write may be held back, what holds it back is not."""

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def failing(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None, *words: str) -> Outcome:
    err = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["quantkit", *words])
    monkeypatch.setattr(sys, "stderr", err)
    with redirect_stdout(stream), pytest.raises(SystemExit) as stop:
        run()
    return Outcome(stop.value.code, "", err.getvalue())


@pytest.mark.parametrize("what", COMMANDS)
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    outcome = failing(monkeypatch, Full(), *COMMANDS[what])
    assert outcome.code == 1
    *_, line = outcome.err.splitlines()
    assert line.startswith("Error: stdout cannot be written: No space left on device. ")
    assert "Traceback" not in outcome.err


def test_stdout_that_was_closed_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = failing(monkeypatch, None, *COMMANDS["a table"])
    assert outcome.code == 1
    assert outcome.err.startswith("Error: stdout is closed; ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="There is no /dev/full.")
@pytest.mark.parametrize("sink", ["/dev/full", "a pipe that is closed"])
def test_a_real_one(sink: str) -> None:
    """What Python holds back when it ends is not written then, which would be a second error."""
    command = [sys.executable, "-P", "-m", "quantkit", *COMMANDS["JSON"]]
    if sink == "/dev/full":
        with Path(sink).open("wb") as stream:
            done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, check=False)
        code, err = done.returncode, done.stderr
    else:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.close()
            assert process.stderr is not None
            err = process.stderr.read()
            code = process.wait()
    assert code == 1
    (line,) = err.decode().splitlines()
    assert line.startswith("Error: stdout cannot be written: ")
