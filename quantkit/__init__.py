"""Build, size, smoke-test and publish every quant of a large language model."""

from importlib import import_module
from typing import TYPE_CHECKING

from quantkit.core.version import __version__ as __version__

# What is to be had from here, by the module that has it: each is imported when it is first used.
_HOMES = {
    "BnbOptions": "quantkit.formats.bnb.codec",
    "BudgetOptions": "quantkit.api.budget",
    "BuildOptions": "quantkit.api.options",
    "Built": "quantkit.api.passes",
    "CalibrateOptions": "quantkit.api.options",
    "Calibrated": "quantkit.api.calibrate",
    "CheckOptions": "quantkit.api.options",
    "Comparison": "quantkit.verification.compare",
    "ContestOptions": "quantkit.api.options",
    "ContextSettings": "quantkit.fitting.settings",
    "ConverterOptions": "quantkit.checkpoint.converter.wish",
    "EncodingOptions": "quantkit.api.options",
    "FileOptions": "quantkit.api.options",
    "Fitted": "quantkit.api.fit",
    "GptqOptions": "quantkit.formats.gptq.plan",
    "MachineOptions": "quantkit.fitting.hardware",
    "PictureOptions": "quantkit.api.compare",
    "Planned": "quantkit.api.build",
    "Progress": "quantkit.api.reporter",
    "PublicationOptions": "quantkit.api.options",
    "PublishOptions": "quantkit.publishing.release",
    "Published": "quantkit.publishing.release",
    "QuantkitError": "quantkit.core.errors",
    "Resources": "quantkit.api.options",
    "Smoked": "quantkit.api.smoke",
    "TextOptions": "quantkit.api.options",
    "Verification": "quantkit.publishing.verify",
    "build": "quantkit.api.build",
    "calibrate": "quantkit.api.calibrate",
    "compare": "quantkit.api.compare",
    "fit": "quantkit.api.fit",
    "plan": "quantkit.api.build",
    "publish": "quantkit.api.publish",
    "smoke": "quantkit.api.smoke",
    "verify": "quantkit.api.verify",
}
__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from quantkit.api.budget import BudgetOptions as BudgetOptions
    from quantkit.api.build import Planned as Planned
    from quantkit.api.build import build as build
    from quantkit.api.build import plan as plan
    from quantkit.api.calibrate import Calibrated as Calibrated
    from quantkit.api.calibrate import calibrate as calibrate
    from quantkit.api.compare import PictureOptions as PictureOptions
    from quantkit.api.compare import compare as compare
    from quantkit.api.fit import Fitted as Fitted
    from quantkit.api.fit import fit as fit
    from quantkit.api.options import BuildOptions as BuildOptions
    from quantkit.api.options import CalibrateOptions as CalibrateOptions
    from quantkit.api.options import CheckOptions as CheckOptions
    from quantkit.api.options import ContestOptions as ContestOptions
    from quantkit.api.options import EncodingOptions as EncodingOptions
    from quantkit.api.options import FileOptions as FileOptions
    from quantkit.api.options import PublicationOptions as PublicationOptions
    from quantkit.api.options import Resources as Resources
    from quantkit.api.options import TextOptions as TextOptions
    from quantkit.api.passes import Built as Built
    from quantkit.api.publish import publish as publish
    from quantkit.api.reporter import Progress as Progress
    from quantkit.api.smoke import Smoked as Smoked
    from quantkit.api.smoke import smoke as smoke
    from quantkit.api.verify import verify as verify
    from quantkit.checkpoint.converter.wish import ConverterOptions as ConverterOptions
    from quantkit.core.errors import QuantkitError as QuantkitError
    from quantkit.fitting.hardware import MachineOptions as MachineOptions
    from quantkit.fitting.settings import ContextSettings as ContextSettings
    from quantkit.formats.bnb.codec import BnbOptions as BnbOptions
    from quantkit.formats.gptq.plan import GptqOptions as GptqOptions
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
