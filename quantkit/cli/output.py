"""Where output goes: results to stdout (for people or as JSON), the rest to stderr."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from quantkit.core.units import format_size

console = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
_PLAIN_SECONDS = 10.0


def emit_json(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    json.dump(document, sys.stdout, indent=2, default=str)
    print()


def note(text: str) -> None:
    """A remark on stderr."""
    notes.print(escape(text), soft_wrap=True)


def fail(text: str) -> None:
    """An error on stderr."""
    notes.print(f"[bold red]Error:[/] {escape(text)}", soft_wrap=True)


class Meter(Protocol):
    """Shows how far a job is."""

    def show(self, title: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes of the job called ``title``."""

    def close(self) -> None:
        """The job is over."""


def open_meter() -> Meter:
    """A bar on a terminal, else a line now and then."""
    return _Bar() if notes.is_terminal else _Lines()


class _Bar:
    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=notes,
            transient=True,
        )
        self._title = ""
        self._progress.start()

    def show(self, title: str, done: int, total: int) -> None:
        if title != self._title:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._task = self._progress.add_task(escape(title), total=total)
            self._title = title
        self._progress.update(self._task, completed=done)

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    def __init__(self) -> None:
        self._title = ""
        self._start = self._last = time.monotonic()

    def show(self, title: str, done: int, total: int) -> None:
        now = time.monotonic()
        if title != self._title:
            self._title, self._start, self._last = title, now, now
            return
        if now - self._last < _PLAIN_SECONDS or not done:
            return
        self._last = now
        rate = done / (now - self._start)
        note(
            f"{title}: {format_size(done)} of {format_size(total)}, "
            f"{format_size(int(rate))}/s, {(total - done) / rate:.0f} s left"
        )

    def close(self) -> None:
        pass
