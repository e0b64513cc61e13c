"""The command line: its subcommands, and errors turned into sentences and exit codes.

A command's module is imported when that command is run, and all of them for help and completion:
with sixteen modules of options, the command line took as long to start as some commands take.
"""

import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from importlib import import_module
from typing import Annotated, Any

import typer

from quantkit.cli.help import HelpfulCommand, HelpfulGroup
from quantkit.cli.output import be_quiet, fail, guarded_stdout, spell
from quantkit.core.errors import Interrupted, QuantkitError
from quantkit.core.system import require_supported
from quantkit.core.version import __version__

# With their panels, in the order of the help. Each is a function of a module of its name.
COMMANDS = {
    "fit": "Choose",
    "recipe": "Choose",
    "quants": "Choose",
    "inspect": "Choose",
    "build": "Build",
    "calibrate": "Build",
    "measure": "Build",
    "export": "Build",
    "import": "Build",
    "densify": "Build",
    "smoke": "Check",
    "compare": "Check",
    "perplexity": "Check",
    "doctor": "Check",
    "publish": "Publish",
    "verify": "Publish",
}
_PROGRAM = "quantkit"
_COMPLETING = "_QUANTKIT_COMPLETE"  # set by the shell's function that completes


QuietOption = Annotated[
    bool, typer.Option("--quiet", help="Print only results and errors: no progress, no remarks.")
]


def _wrapped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with --quiet, and with Ctrl-C as an error of ours.

    typer would end without a word.
    """

    @wraps(command)
    def run(*args: object, quiet: bool, **options: object) -> None:
        if quiet:
            be_quiet()
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            raise Interrupted("Stopped.") from None

    # What typer makes the options of.
    known = inspect.signature(command, eval_str=True)
    added = inspect.Parameter(
        "quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=QuietOption
    )
    run.__signature__ = known.replace(  # type: ignore[attr-defined] # inspect looks for it
        parameters=[*known.parameters.values(), added]
    )
    return run


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"quantkit {__version__}")
        raise typer.Exit


def options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_show_version, is_eager=True, help="Show the version."
        ),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Build, size, smoke-test and publish every quant of a large language model.

    `quantkit COMMAND -h` shows the options of a command, and examples.
    """
    be_quiet(quiet)


def with_commands(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with these commands."""
    app = typer.Typer(
        cls=HelpfulGroup,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    app.callback()(options)
    for name in names:
        python_name = f"{name}_" if name == "import" else name  # which is a word of the language
        command = getattr(import_module(f"quantkit.cli.{python_name}"), python_name)
        add = app.command(name, cls=HelpfulCommand, rich_help_panel=COMMANDS[name])
        add(_wrapped(command))
    return app


def __getattr__(name: str) -> Any:
    """``app``: the whole command line, made when it is asked for."""
    if name == "app":
        return with_commands()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _needed(arguments: Sequence[str]) -> Sequence[str]:
    """The commands that a command line can need: the one that it names, else all."""
    if _COMPLETING in os.environ:  # bash has its words there, zsh and fish here
        words = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
        arguments = words.split()[1:]
    named = _command_of(arguments)
    return (named,) if named in COMMANDS else tuple(COMMANDS)


def _command_of(arguments: Sequence[str]) -> str:
    """The first word that is no option: those before it have no values."""
    return next((word for word in arguments if not word.startswith("-")), "")


def _complete(arguments: Sequence[str]) -> list[str]:
    """The arguments with the values that a command's options can go without."""
    if _command_of(arguments) != "fit":
        return list(arguments)
    from quantkit.cli.fit import complete

    return complete(arguments)


def run() -> None:
    """Run the command line; exit 0, or 1, 2 or 130 after one sentence on stderr."""
    # gguf-py logs what it guesses about a model; quantkit reports what matters itself.
    logging.getLogger().addHandler(logging.NullHandler())
    spell()
    arguments = sys.argv[1:] or ["--help"]
    try:
        with guarded_stdout():
            require_supported()
            app = with_commands(_needed(arguments))
            app(args=_complete(arguments), prog_name=_PROGRAM)
    except QuantkitError as error:
        fail(str(error))
        sys.exit(error.exit_code)
