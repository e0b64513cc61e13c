"""The command line: its subcommands, and errors turned into sentences and exit codes.

A command's module is imported when that command is run, and all of them for help and completion:
with sixteen modules of options, the command line took as long to start as some commands take.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from importlib import import_module
from typing import Annotated, Any

import typer

from quantkit.cli.output import fail, guarded_stdout, spell
from quantkit.core.errors import Interrupted, QuantkitError
from quantkit.core.system import require_supported
from quantkit.core.version import __version__

# In the order of the help. Each is a function of a module of its name.
COMMANDS = (
    *("fit", "build", "recipe", "calibrate", "measure", "export", "import", "densify", "quants"),
    *("inspect", "smoke", "compare", "publish", "verify", "perplexity", "doctor"),
)
_COMPLETING = "_QUANTKIT_COMPLETE"  # set by the shell's function that completes


def _stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """The command with Ctrl-C as an error of ours: typer would end without a word."""

    @wraps(command)
    def run(*args: object, **options: object) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            raise Interrupted("Stopped.") from None

    return run


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"quantkit {__version__}")
        raise typer.Exit


def options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Build, inspect and smoke-test every quant of a large language model."""


def with_commands(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with these commands."""
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        help="Build, inspect and smoke-test every quant of a large language model.",
    )
    app.callback()(options)
    for name in names:
        python_name = f"{name}_" if name == "import" else name  # which is a word of the language
        command = getattr(import_module(f"quantkit.cli.{python_name}"), python_name)
        app.command(name)(_stoppable(command))
    return app


def __getattr__(name: str) -> Any:
    """``app``: the whole command line, made when it is asked for."""
    if name == "app":
        return with_commands()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _needed(arguments: Sequence[str]) -> Sequence[str]:
    """The commands that a command line can need: the one that it begins with, else all."""
    first = arguments[0] if arguments else ""
    return (first,) if first in COMMANDS and _COMPLETING not in os.environ else COMMANDS


def _complete(arguments: Sequence[str]) -> list[str]:
    """The arguments with the values that a command's options can go without."""
    if arguments[:1] != ["fit"]:
        return list(arguments)
    from quantkit.cli.fit import complete

    return complete(arguments)


def run() -> None:
    """Run the command line; exit 0, or 1, 2 or 130 after one sentence on stderr."""
    # gguf-py logs what it guesses about a model; quantkit reports what matters itself.
    logging.getLogger().addHandler(logging.NullHandler())
    spell()
    arguments = sys.argv[1:]
    try:
        with guarded_stdout():
            require_supported()
            with_commands(_needed(arguments))(args=_complete(arguments))
    except QuantkitError as error:
        fail(str(error))
        sys.exit(error.exit_code)
