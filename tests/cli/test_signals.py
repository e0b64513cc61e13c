"""Signals to the process of a command: before it begins, while it runs, and when it is over."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSPECT = ("inspect", "tests/checkpoints/tiny-mistral")  # which takes next to no time
IGNORE_SIGINT = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)

# As the script that pip installs does it.
SCRIPT = "import sys; from quantkit.cli.main import main; sys.exit(main())"

DURING_IMPORTS = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""

# The first comes when the interpreter waits for threads, the second when exit handlers run.
AT_THE_END = """
import atexit, signal, sys, threading

def interrupt():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    told.append(True)

def wait_and_interrupt():
    threading.main_thread().join()
    interrupt()

told = []
atexit.register(lambda: print(len(told), "signals"))
atexit.register(interrupt)
threading.Thread(target=wait_and_interrupt).start()
from quantkit.cli.main import main
sys.argv = ["quantkit", *sys.argv[1:]]
main()
"""

WHILE_IT_RUNS = """
import os, signal, sys
from quantkit.cli import inspect
from quantkit.cli.main import main

real = inspect.emit_json
numbers = sys.argv.pop().split(",")

def emit_json(document):
    for number in numbers:
        os.kill(os.getpid(), int(number))
    real(document)

inspect.emit_json = emit_json
main()
"""


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.parametrize("start", [("-m", "quantkit"), ("-c", SCRIPT)], ids=["module", "script"])
def test_before_the_command_begins(start: tuple[str, ...], tmp_path: Path) -> None:
    """As any program that does nothing about Ctrl-C: no traceback."""
    (tmp_path / "sitecustomize.py").write_text(DURING_IMPORTS)
    paths = f"{tmp_path}{os.pathsep}{ROOT}"
    stopped = run(*start, *INSPECT, env=os.environ | {"PYTHONPATH": paths})
    assert stopped.returncode == -signal.SIGINT
    assert (stopped.stdout, stopped.stderr) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "code"), [(INSPECT, 0), (("smoke", "nothing.gguf"), 2), (("nonsense",), 2)]
)
def test_when_the_command_is_over(arguments: tuple[str, ...], code: int) -> None:
    """Too late: the exit code is that of the command, which has said what it had to say."""
    ended = run("-c", AT_THE_END, *arguments)
    assert ended.returncode == code, ended.stderr
    assert ended.stdout.endswith("2 signals\n")
    assert "Traceback" not in ended.stderr
    assert "KeyboardInterrupt" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_the_command_runs(number: signal.Signals) -> None:
    stopped = run("-c", WHILE_IT_RUNS, *INSPECT, "--json", str(number.value))
    assert (stopped.returncode, stopped.stderr) == (130, "Error: Stopped.\n")
    assert stopped.stdout == ""


def test_ctrl_c_that_was_ignored_stays_ignored() -> None:
    """As what a shell starts in the background has it; SIGTERM stops it there, too."""
    command = ("-c", WHILE_IT_RUNS, *INSPECT, "--json")
    both = f"{signal.SIGINT.value},{signal.SIGTERM.value}"
    went_on = run(*command, str(signal.SIGINT.value), preexec_fn=IGNORE_SIGINT)
    assert (went_on.returncode, went_on.stderr) == (0, "")
    assert "token_embd" in went_on.stdout
    stopped = run(*command, both, preexec_fn=IGNORE_SIGINT)
    assert (stopped.returncode, stopped.stderr) == (130, "Error: Stopped.\n")


def test_tests_started_in_the_background() -> None:
    """They give the processes that they start Ctrl-C all the same."""
    name = f"{Path(__file__).relative_to(ROOT)}::test_while_the_command_runs"
    tested = run("-m", "pytest", "-q", "-p", "no:cacheprovider", name, preexec_fn=IGNORE_SIGINT)
    assert tested.returncode == 0, tested.stdout
    assert "2 passed" in tested.stdout
