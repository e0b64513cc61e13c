"""The ``quantkit`` command inside the test's own process, which is fast."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from quantkit.cli.main import main


@dataclass(frozen=True)
class Outcome:
    code: int | str | None
    out: str
    err: str


def quantkit(*arguments: object) -> Outcome:
    """Run a command line as the shell would, without the leading ``quantkit``."""
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = None
    before, sys.argv = sys.argv, ["quantkit", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = before
    return Outcome(code, out.getvalue(), err.getvalue())


def refusal(outcome: Outcome, code: int = 2) -> str:
    """The one sentence (or two) on stderr that a command was refused with."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    *remarks, line = outcome.err.splitlines()
    # The first build on a machine says which kernels it compiles.
    remarks = [remark for remark in remarks if not remark.startswith("Compiling the kernel for ")]
    # A build that has been planned says so before it begins.
    assert all(" parameters, " in remark and " into " in remark for remark in remarks)
    assert len(remarks) <= 1
    assert line.startswith("Error: ")
    sentence = line.removeprefix("Error: ")
    assert sentence[-1] in ".?"
    assert len(sentence) < 900
    return sentence
