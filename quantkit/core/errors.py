"""One error class per cause, each raised with one sentence that names the file and the fix.

Only ``quantkit.cli`` turns these into text and exit codes. ``exit_code`` is 2 where the input is
at fault (the user can mend it) and 1 where the work itself failed. A sentence may hold whatever
stood in a file; ``str`` gives it as one line that is safe to print.
"""

from quantkit.core.printable import one_line


class QuantkitError(Exception):
    """Base of every error that quantkit raises on purpose."""

    exit_code = 2

    def __str__(self) -> str:
        return one_line(super().__str__())


class FileError(QuantkitError):
    """A file cannot be read, or is not of the form that it should have."""


class UnsupportedSystemError(QuantkitError):
    """quantkit cannot run on this operating system."""


class CheckpointError(QuantkitError):
    """The checkpoint folder is missing, incomplete, or disagrees with itself."""


class SafetensorsError(CheckpointError):
    """A safetensors file breaks the format's rules."""


class UnknownArchitectureError(CheckpointError):
    """config.json names an architecture that no family handles."""


class ConverterError(QuantkitError):
    """llama.cpp's converter cannot be had, or does not describe a checkpoint."""


class ConverterEndedError(QuantkitError):
    """The converter's process is gone, whoever ended it: nothing is said of the checkpoint."""

    exit_code = 1


class TokenizerError(CheckpointError):
    """The tokenizer is missing or of a kind that llama.cpp cannot hold."""


class SourceChangedError(CheckpointError):
    """A file on the Hub is not what it was when the work began."""


class WeightsError(CheckpointError):
    """A weight is NaN or infinite, so no quant of it can be right."""


class UnknownQuantError(QuantkitError):
    """A quant name that quantkit does not know."""


class ImatrixError(QuantkitError):
    """An importance matrix is missing, unreadable, or of another model."""


class CalibrationError(QuantkitError):
    """The calibration text cannot be read or is too short, or the model cannot be run over it."""


class PlanError(QuantkitError):
    """The request cannot be planned: an override that matches nothing, a shard size too small."""


class OutputError(QuantkitError):
    """The output folder cannot take the result: not writable, in use, or holding something else."""


class NoSpaceError(OutputError):
    """The output's file system has not enough free bytes."""


class GGUFError(QuantkitError):
    """A GGUF file cannot be read."""


class NativeError(QuantkitError):
    """llama.cpp or its libraries cannot be found or used."""

    exit_code = 1


class SmokeError(QuantkitError):
    """An artifact did not pass its smoke test."""

    exit_code = 1


class CompareError(QuantkitError):
    """An artifact is further from the reference than a healthy one, or could not be measured."""

    exit_code = 1


class TextError(QuantkitError):
    """A text to measure on cannot be read."""


class Interrupted(QuantkitError):  # noqa: N818 - it reports Ctrl-C, which is not an error
    """The user stopped the work; it resumes where it was."""

    exit_code = 130


class MissingPackageError(QuantkitError):
    """An optional package that the request needs is not installed."""


class ClusterError(QuantkitError):
    """A cluster cannot be reached or used, or lost the same work again and again."""


class PlaceLostError(ClusterError):
    """A disk that files of a build were on is gone with its node; a new run puts them elsewhere."""


class PublishError(QuantkitError):
    """A build cannot be published as it is, or not there: the user has something to mend."""


class UploadError(QuantkitError):
    """The Hub did not take a file, or does not hold what was sent."""

    exit_code = 1


class VerificationError(QuantkitError):
    """Files are not those that were built, or a signature is not theirs."""

    exit_code = 1
