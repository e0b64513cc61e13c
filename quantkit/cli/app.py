"""The command line: its subcommands, and errors turned into sentences and exit codes."""

import logging
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated

import typer

import quantkit
from quantkit.cli import (
    build,
    calibrate,
    compare,
    densify,
    doctor,
    export,
    fit,
    import_,
    inspect,
    measure,
    perplexity,
    publish,
    quants,
    recipe,
    smoke,
    verify,
)
from quantkit.cli.output import fail, guarded_stdout, spell
from quantkit.core.errors import Interrupted, QuantkitError
from quantkit.core.system import require_supported

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Build, inspect and smoke-test every quant of a large language model.",
)


def _stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """The command with Ctrl-C as an error of ours: typer would end without a word."""

    @wraps(command)
    def run(*args: object, **options: object) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            raise Interrupted("Stopped.") from None

    return run


for command in (
    fit.fit,
    build.build,
    recipe.recipe,
    calibrate.calibrate,
    measure.measure,
    export.export,
    import_.import_,
    densify.densify,
    quants.quants,
    inspect.inspect,
    smoke.smoke,
    compare.compare,
    publish.publish,
    verify.verify,
    perplexity.perplexity,
    doctor.doctor,
):
    app.command(command.__name__.rstrip("_"))(_stoppable(command))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"quantkit {quantkit.__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Build, inspect and smoke-test every quant of a large language model."""


def run() -> None:
    """Run the command line; exit 0, or 1, 2 or 130 after one sentence on stderr."""
    # gguf-py logs what it guesses about a model; quantkit reports what matters itself.
    logging.getLogger().addHandler(logging.NullHandler())
    spell()
    try:
        with guarded_stdout():
            require_supported()
            app(args=fit.complete(sys.argv[1:]))
    except QuantkitError as error:
        fail(str(error))
        sys.exit(error.exit_code)
