"""Who is told how a job goes: the command line's bars and remarks, or a program's own functions."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: ``done`` of ``total`` bytes, or of whole things that ``unit`` names.

    ``rate`` says how fast it goes, in words, where that is not bytes per second. The last of a job
    is ``over``, done or not, for whoever has a bar to close.
    """

    title: str
    done: float
    total: float
    unit: str = ""
    rate: str = ""
    over: bool = False


class Meter(Protocol):
    """Shows how far a job is."""

    def show(self, title: str, done: float, total: float, rate: str = "") -> None:
        """``done`` of ``total`` bytes (or whole things, then with a rate) of a job by its title."""

    def close(self) -> None:
        """The job is over."""


@dataclass(slots=True)
class _Calls:
    """A meter that calls a function."""

    progress: Callable[[Progress], None]
    unit: str
    last: Progress | None = None

    def show(self, title: str, done: float, total: float, rate: str = "") -> None:
        self.last = Progress(title, done, total, self.unit, rate)
        self.progress(self.last)

    def close(self) -> None:
        if self.last is not None:
            self.progress(replace(self.last, over=True))


def _ignore(_: object) -> None:
    pass


def _silent(unit: str = "") -> Meter:
    return _Calls(_ignore, unit)


@dataclass(frozen=True, slots=True)
class Reporter:
    """``note`` takes a remark, a sentence; ``open_meter`` a unit, and gives what shows progress."""

    note: Callable[[str], None] = field(default=_ignore)
    open_meter: Callable[[str], Meter] = field(default=_silent)


def reporter(
    progress: Callable[[Progress], None] | None, note: Callable[[str], None] | None = None
) -> Reporter:
    """What tells a program's own functions; None is told nothing."""
    tell = progress or _ignore
    return Reporter(note or _ignore, lambda unit: _Calls(tell, unit))
