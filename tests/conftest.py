"""What holds for every test, however the tests were started."""

import signal
from collections.abc import Iterator

import pytest


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
