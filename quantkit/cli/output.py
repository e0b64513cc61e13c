"""Where output goes: results to stdout (for people or as JSON), the rest to stderr.

Nothing that is printed is cut: a table that is too wide becomes lines, a pipe has no width, and
what an encoding lacks is spelled in ASCII.
"""

import codecs
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar, cast

import typer
from rich.console import Console, ConsoleDimensions
from rich.markup import escape as without_markup
from rich.measure import Measurement
from rich.table import Column, Table

from quantkit.core.errors import QuantkitError
from quantkit.core.printable import one_line

_T = TypeVar("_T")
_NO_LIMIT = 100_000  # columns of what is not a terminal
_PROSE = 14  # columns that a column of words can be squeezed into, if its words allow
_SPELLED = {
    "\u00b1": "+-",
    "\u0394": "d",
    "\u00d7": "x",
    "\u2026": "...",
    "\u2192": "->",
    "\u2013": "-",
    "\u2014": "-",
    "\u2018": "'",
    "\u2019": "'",
    "\u201c": '"',
    "\u201d": '"',
}


class _Console(Console):
    """A console that cuts nothing in a pipe: only a terminal, or COLUMNS, has a width."""

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines."""
        if self.is_terminal or os.environ.get("COLUMNS", "").isdecimal():
            return super().size
        return ConsoleDimensions(_NO_LIMIT, 25)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        Console.size.fset(self, new_size)  # type: ignore[attr-defined] # a property


console = _Console(highlight=False)
notes = Console(stderr=True, highlight=False)
_errors = Console(stderr=True, highlight=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
GpuLayersOption = Annotated[
    int, typer.Option(min=0, metavar="N", help="Layers of a GGUF that llama.cpp puts on a GPU.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that already exist.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--jobs", "--threads", min=1, metavar="N", help="Threads  [default: all]"),
]


def emit_json(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    json.dump(document, sys.stdout, indent=2, default=str)
    print()


class StdoutError(QuantkitError):
    """Results cannot be printed: a full disk, or a pipe that nobody reads."""

    exit_code = 1


class _Stdout:
    """The real stdout, whose failures are errors of ours, whoever writes to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._try(self._stream.write, text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., _T], *arguments: str) -> _T:
        try:
            return call(*arguments)
        except OSError as error:
            # What is left in its buffer must go somewhere when the process ends.
            with suppress(OSError), Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            raise StdoutError(
                f"stdout cannot be written: {error.strerror}. The command may have done its work; "
                "send its output elsewhere and give it again."
            ) from None


@contextmanager
def guarded_stdout() -> Iterator[None]:
    """Let stdout that cannot be written be an error of ours, once everything is in it.

    Raises:
        StdoutError: it is closed, or could not be written.

    """
    stream = sys.stdout
    if stream is None:  # closed by whoever started the process
        raise StdoutError("stdout is closed; send the output somewhere, such as to /dev/null.")
    sys.stdout = guarded = cast("TextIO", _Stdout(stream))
    try:
        try:
            yield
        finally:
            guarded.flush()
    finally:
        sys.stdout = stream


def spell() -> None:
    """Let what stdout's encoding lacks be spelled in ASCII instead of raising an error."""
    codecs.register_error("quantkit.spell", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test's stream need not have it
            stream.reconfigure(errors="quantkit.spell")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = ""
    for character in error.object[error.start : error.end]:
        plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
        escaped = character.encode("ascii", "backslashreplace").decode()
        text += _SPELLED.get(character) or plain or escaped
    return text, error.end


def show_table(table: Table) -> None:
    """Print a table; where the console is too narrow for its figures, as lines.

    Columns that must not wrap have ``no_wrap``; the others are words, which may. Title and caption
    are lines of their own, which are not broken.
    """
    title, caption = table.title, table.caption
    table.title = table.caption = None
    widths = [_width(column, table.show_header) for column in table.columns]
    unlimited = console.options.update(width=_NO_LIMIT)
    frame = Measurement.get(console, unlimited, table).maximum
    frame -= sum(width.maximum for width in widths)
    squeezed = [
        width.maximum if column.no_wrap else min(width.maximum, max(width.minimum, _PROSE))
        for column, width in zip(table.columns, widths, strict=True)
    ]
    if title is not None:
        console.print(title, style="italic", soft_wrap=True)
    if sum(squeezed) + frame > console.width:
        _show_lines(table)
    else:
        for column, width in zip(table.columns, squeezed, strict=True):
            column.min_width = width
        console.print(table)
    if caption is not None:
        console.print(caption, style="italic", soft_wrap=True)


def _width(column: Column, has_header: bool) -> Measurement:
    """The longest word and the longest line of a column."""
    cells = [*column.cells, *([column.header] if has_header else [])]
    unlimited = console.options.update(width=_NO_LIMIT)
    found = [Measurement.get(console, unlimited, console.render_str(str(c))) for c in cells]
    longest = max((width.maximum for width in found), default=0)
    return Measurement(max((width.minimum for width in found), default=0), longest)


def _show_lines(table: Table) -> None:
    """A table row by row: its first cell, and each other under its heading."""
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        if not table.show_header:
            console.print(": ".join(str(cell) for cell in cells), soft_wrap=True)
            continue
        for place, (column, cell) in enumerate(zip(table.columns, cells, strict=True)):
            if str(cell):
                indent = "  " if place else ""
                heading = f"{column.header}: " if str(column.header) else ""
                console.print(f"{indent}{heading}{cell}", soft_wrap=True)


def escape(text: object) -> str:
    """A text from anywhere as it may be printed: one line, nothing in it that anybody obeys."""
    return without_markup(one_line(str(text)))


def be_quiet(wanted: bool = True) -> None:
    """Print no remarks and no progress from here on, or do."""
    notes.quiet = wanted


def is_quiet() -> bool:
    """Whether results and errors alone are printed."""
    return notes.quiet


def note(text: str) -> None:
    """A remark on stderr."""
    notes.print(escape(text), soft_wrap=True)


def fail(text: str) -> None:
    """An error on stderr."""
    _errors.print(f"[bold red]Error:[/] {escape(text)}", soft_wrap=True)
