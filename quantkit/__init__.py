"""Build, size, smoke-test and publish every quant of a large language model."""

from importlib import import_module
from typing import TYPE_CHECKING

from quantkit.core.version import __version__ as __version__

# What is to be had from here, by the module that has it: each is imported when it is first used.
_HOMES = {
    "Comparison": "quantkit.verification.compare",
    "ContextSettings": "quantkit.fitting.probe",
    "ConverterOptions": "quantkit.checkpoint.converter.wish",
    "Fitted": "quantkit.api.fit",
    "MachineOptions": "quantkit.fitting.hardware",
    "PictureOptions": "quantkit.api.compare",
    "Progress": "quantkit.api.reporter",
    "PublishOptions": "quantkit.publishing.release",
    "Published": "quantkit.publishing.release",
    "QuantkitError": "quantkit.core.errors",
    "Smoked": "quantkit.api.smoke",
    "Verification": "quantkit.publishing.verify",
    "compare": "quantkit.api.compare",
    "fit": "quantkit.api.fit",
    "publish": "quantkit.api.publish",
    "smoke": "quantkit.api.smoke",
    "verify": "quantkit.api.verify",
}
__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from quantkit.api.compare import PictureOptions as PictureOptions
    from quantkit.api.compare import compare as compare
    from quantkit.api.fit import Fitted as Fitted
    from quantkit.api.fit import fit as fit
    from quantkit.api.publish import publish as publish
    from quantkit.api.reporter import Progress as Progress
    from quantkit.api.smoke import Smoked as Smoked
    from quantkit.api.smoke import smoke as smoke
    from quantkit.api.verify import verify as verify
    from quantkit.checkpoint.converter.wish import ConverterOptions as ConverterOptions
    from quantkit.core.errors import QuantkitError as QuantkitError
    from quantkit.fitting.hardware import MachineOptions as MachineOptions
    from quantkit.fitting.probe import ContextSettings as ContextSettings
    from quantkit.publishing.release import Published as Published
    from quantkit.publishing.release import PublishOptions as PublishOptions
    from quantkit.publishing.verify import Verification as Verification
    from quantkit.verification.compare import Comparison as Comparison
else:  # a type checker is to refuse what is not above

    def __getattr__(name):
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
