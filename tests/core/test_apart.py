"""A copy of this process may die, hang or panic: there is an answer or one sentence."""

import os
import time
from collections.abc import Callable

import pytest

from quantkit.core.apart import run_apart
from quantkit.core.errors import CheckpointError, TokenizerError


def _apart(work: Callable[[], object], seconds: float = 60) -> object:
    return run_apart(work, "a.json", seconds=seconds, error=TokenizerError, fix="mend it")


class Panic(BaseException):
    """As pyo3 has them."""


def _panic() -> None:
    os.write(2, b"336 lines\n")
    raise Panic("byte index 3\nis no boundary")


def _refuse() -> None:
    raise CheckpointError("b.json is not JSON.")


def _hang() -> None:
    while True:
        time.sleep(1000)  # time: it is what hangs, until it is ended


def test_an_answer_comes_back() -> None:
    assert _apart(lambda: {"a": ["x"] * 300_000}) == {"a": ["x"] * 300_000}


def test_an_error_of_ours_is_passed_on() -> None:
    with pytest.raises(CheckpointError, match=r"b\.json is not JSON"):
        _apart(_refuse)


@pytest.mark.parametrize(
    ("work", "why"),
    [(_panic, r"\(byte index 3\)"), (os.abort, "died of SIGABRT"), (lambda: os._exit(3), "ended")],
)
def test_whatever_happens_to_it_is_one_sentence(
    work: Callable[[], object], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TokenizerError, match=f"^a.json cannot be used .*{why}.*; mend it.$"):
        _apart(work)
    assert capfd.readouterr() == ("", "")


def test_what_never_ends_is_ended() -> None:
    with pytest.raises(TokenizerError, match=r"^a\.json keeps the library .* busy"):
        _apart(_hang, seconds=0.1)
