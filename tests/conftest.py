"""What holds for every test, however the tests were started."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest

# What rich and typer ask for the width and colours of a terminal, before they are imported: tests
# read what commands print where there is none.
_TERMINAL = {"COLUMNS", "LINES", "TERMINAL_WIDTH", "FORCE_COLOR", "NO_COLOR", "PY_COLORS"}
_TERMINAL |= {"TTY_COMPATIBLE", "TTY_INTERACTIVE", "GITHUB_ACTIONS"}
for name in _TERMINAL:
    os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def processes_that_can_be_interrupted() -> Iterator[None]:
    """Give the processes that tests start Ctrl-C as a foreground process has it.

    What a shell starts in the background ignores SIGINT, and so does whatever that starts. A
    handler is not inherited: this one goes on ignoring it here, and a new process gets the default.
    """
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda _signal, _frame: None)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def shared_converter() -> Iterator[None]:
    """One process of llama.cpp's converter for a module's checkpoints, where that is not tested."""
    from tests.checkpoint.converter.shared import one_converter

    with one_converter():
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_to_say_at_the_end() -> Iterator[None]:
    """Warnings are errors here, also those that come when the interpreter ends."""
    yield
    close_llama_cpps_files()


def close_llama_cpps_files() -> None:
    """llama-cpp-python opens /dev/null twice when it is imported, and leaves it open."""
    module = sys.modules.get("llama_cpp._utils")
    if module is not None:
        module.outnull_file.close()
        module.errnull_file.close()
