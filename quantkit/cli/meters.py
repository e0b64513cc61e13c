"""How far a job is, on stderr: a bar on a terminal, elsewhere a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from quantkit.api import reporter
from quantkit.cli.output import escape, note, notes
from quantkit.core.units import format_size

_PLAIN_SECONDS = 10.0


def open_meter(unit: str = "") -> reporter.Meter:
    """A bar on a terminal, else a line now and then. It counts bytes, or such as ``"layer"``."""
    return _Bar(unit) if notes.is_terminal else _Lines(unit)


@contextmanager
def showing() -> Iterator[Callable[[reporter.Progress], None]]:
    """A function that shows how far a job is, and no more of it once it is over."""
    meter: reporter.Meter | None = None

    def show(progress: reporter.Progress) -> None:
        nonlocal meter
        if progress.over:
            close()
            return
        meter = meter or open_meter(progress.unit)
        meter.show(progress.title, progress.done, progress.total, progress.rate)

    def close() -> None:
        nonlocal meter
        if meter is not None:
            meter.close()
        meter = None

    try:
        yield show
    finally:
        close()


class _Bar:
    def __init__(self, unit: str) -> None:
        self._unit = unit
        counts: tuple[ProgressColumn, ...] = (DownloadColumn(), TransferSpeedColumn())
        if unit:
            counts = (TextColumn("{task.fields[place]}"),)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *counts,
            TimeRemainingColumn(),
            console=notes,
            transient=True,
        )
        self._title = ""
        self._progress.start()

    def show(self, title: str, done: float, total: float, rate: str = "") -> None:
        if title != self._title:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._task = self._progress.add_task(escape(title), total=total, place="")
            self._title = title
        place = _place(self._unit, done, total, rate)
        self._progress.update(self._task, completed=done, place=place)

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._title = ""
        self._first = 0.0
        self._start = self._last = time.monotonic()

    def show(self, title: str, done: float, total: float, rate: str = "") -> None:
        now = time.monotonic()
        if title != self._title:
            self._title, self._start, self._last = title, now, now
            self._first = done if self._unit else 0.0  # a resumed run begins somewhere
            return
        if now - self._last < _PLAIN_SECONDS or done <= self._first:
            return
        self._last = now
        speed = (done - self._first) / (now - self._start)
        if self._unit:
            progress = _place(self._unit, done, total, rate)
        else:
            progress = (
                f"{format_size(int(done))} of {format_size(int(total))}, "
                f"{format_size(int(speed))}/s"
            )
        note(f"{title}: {progress}, {(total - done) / speed:.0f} s left")

    def close(self) -> None:
        pass


def _place(unit: str, done: float, total: float, rate: str) -> str:
    place = f"{unit} {min(int(done) + 1, int(total))} of {int(total)}"
    return f"{place}, {rate}" if rate else place
