"""Where output goes: results to stdout (for people or as JSON), the rest to stderr."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.markup import escape as without_markup
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from quantkit.core.printable import one_line
from quantkit.core.units import format_size

console = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
_PLAIN_SECONDS = 10.0


def emit_json(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    json.dump(document, sys.stdout, indent=2, default=str)
    print()


def escape(text: object) -> str:
    """A text from anywhere as it may be printed: one line, nothing in it that anybody obeys."""
    return without_markup(one_line(str(text)))


def note(text: str) -> None:
    """A remark on stderr."""
    notes.print(escape(text), soft_wrap=True)


def fail(text: str) -> None:
    """An error on stderr."""
    notes.print(f"[bold red]Error:[/] {escape(text)}", soft_wrap=True)


class Meter(Protocol):
    """Shows how far a job is."""

    def show(self, title: str, done: float, total: float, rate: str = "") -> None:
        """``done`` of ``total`` bytes (or layers, then with a rate) of the job called ``title``."""

    def close(self) -> None:
        """The job is over."""


def open_meter(*, layers: bool = False) -> Meter:
    """A bar on a terminal, else a line now and then. What it counts are bytes, or layers."""
    return _Bar(layers) if notes.is_terminal else _Lines(layers)


class _Bar:
    def __init__(self, layers: bool) -> None:
        counts: tuple[ProgressColumn, ...] = (DownloadColumn(), TransferSpeedColumn())
        if layers:
            counts = (TextColumn("{task.fields[place]}, {task.fields[rate]}"),)
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
            self._task = self._progress.add_task(escape(title), total=total, place="", rate="")
            self._title = title
        place = _place(done, total)
        self._progress.update(self._task, completed=done, place=place, rate=rate)

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    def __init__(self, layers: bool) -> None:
        self._layers = layers
        self._title = ""
        self._first = 0.0
        self._start = self._last = time.monotonic()

    def show(self, title: str, done: float, total: float, rate: str = "") -> None:
        now = time.monotonic()
        if title != self._title:
            self._title, self._start, self._last = title, now, now
            self._first = done if self._layers else 0.0  # a resumed run begins somewhere
            return
        if now - self._last < _PLAIN_SECONDS or done <= self._first:
            return
        self._last = now
        speed = (done - self._first) / (now - self._start)
        if self._layers:
            progress = f"{_place(done, total)}, {rate}"
        else:
            progress = (
                f"{format_size(int(done))} of {format_size(int(total))}, "
                f"{format_size(int(speed))}/s"
            )
        note(f"{title}: {progress}, {(total - done) / speed:.0f} s left")

    def close(self) -> None:
        pass


def _place(done: float, total: float) -> str:
    return f"layer {min(int(done) + 1, int(total))} of {int(total)}"
