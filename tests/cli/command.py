"""The ``quantkit`` command inside the test's own process, which is fast."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from quantkit.cli.app import run
from tests.cli.kept_answers import each_question_once


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
        with redirect_stdout(out), redirect_stderr(err), each_question_once():
            run()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = before
    return Outcome(code, out.getvalue(), err.getvalue())


def sentences(err: str) -> list[str]:
    """The lines of stderr that a command says on every machine, at any speed.

    The first build on a machine says which kernels it compiles; work that takes ten seconds says
    how far it is. A card made of a folder says that it has no lineage.
    """
    return [
        line
        for line in err.splitlines()
        if not line.startswith(("Compiling kernels", "The card names no base model"))
        and not line.endswith(" s left")
    ]


def refusal(outcome: Outcome, code: int = 2) -> str:
    """The one sentence (or two) on stderr that a command was refused with."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    *remarks, line = sentences(outcome.err)
    # A build that has been planned says so before it begins.
    assert all(" parameters, " in remark and " into " in remark for remark in remarks)
    assert len(remarks) <= 1
    assert line.startswith("Error: ")
    sentence = line.removeprefix("Error: ")
    assert sentence[-1] in ".?"
    assert len(sentence) < 900
    return sentence
