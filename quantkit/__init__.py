"""Build, size, smoke-test and publish every quant of a large language model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quantkit.core.version import __version__ as __version__

if TYPE_CHECKING:
    from quantkit.api.reporter import Progress as Progress

# What is to be had from here, by the module that has it: each is imported when it is first used.
_HOMES = {
    "Progress": "quantkit.api.reporter",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
