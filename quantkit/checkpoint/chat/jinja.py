"""What both ways of rendering share: jinja2's sandbox, as transformers sets it up."""

from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

DATE = "{date}"  # what both ways take for today, whatever the form


class _Generation(Extension):
    """``{% generation %}``, with which transformers marks what an assistant said: no text."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def make_environment(kind: type[ImmutableSandboxedEnvironment], **options: Any) -> Any:
    """A jinja2 environment with what transformers adds, and ``{date}`` for any date.

    Args:
        kind: its class.
        options: further ones of jinja2's.

    """
    environment = kind(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], **options
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda _format: DATE
    return environment
