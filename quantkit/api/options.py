"""What can be asked for: a frozen value per concern, whose fields are named as on the command line.

Every size is in bytes.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from quantkit.api.budget import BudgetOptions as BudgetOptions
from quantkit.calibration.sources import TextSource, parse_sources
from quantkit.checkpoint.converter.wish import ConverterOptions as ConverterOptions
from quantkit.formats.bnb.codec import BnbOptions as BnbOptions
from quantkit.formats.gptq.plan import GptqOptions as GptqOptions
from quantkit.formats.layout import FileOptions as FileOptions
from quantkit.planning.recipe import EncodingOptions as EncodingOptions
from quantkit.verification.machine import usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

_Some = Annotated[int, Meta(ge=1)]
# What the command line calls otherwise.
_TYPED = {"act_order": "desc_act"}


@dataclass(frozen=True, slots=True)
class TextOptions:
    """What is run through a model, and where.

    ``text`` and ``chat`` are files, ``FILE`` or ``FILE:WEIGHT``, of text and of conversations; the
    built-in text if there are none. At most ``chunks`` sequences of ``context`` tokens are run, on
    the ``device`` ``cpu`` or ``cuda``.
    """

    text: tuple[str, ...] = ()
    chat: tuple[str, ...] = ()
    chunks: _Some = 128
    context: _Some = 512
    device: Annotated[str, Meta(pattern="^(cpu|cuda)$")] = "cpu"

    @property
    def sources(self) -> tuple[TextSource, ...]:
        """The files.

        Raises:
            CalibrationError: a weight is no positive number.

        """
        return parse_sources(self.text, self.chat)


@dataclass(frozen=True, slots=True)
class ContestOptions:
    """Whether candidates of a search are measured, None for where that can be done, and on what."""

    compare: bool | None = None
    compare_text: Path | None = None


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """Whether artifacts are run, their conversion is proven, and what is there is hashed."""

    smoke: bool = True
    prove: bool = False
    verify: bool = False


@dataclass(frozen=True, slots=True)
class PublicationOptions:
    """Where what is built is published, ``NAMESPACE/NAME``, and how; None for nowhere.

    With ``delete_published`` each file is sent once it is finished, and deleted here; all of them
    take ``max_disk`` at a time.
    """

    publish: str | None = None
    delete_published: bool = False
    max_disk: _Some | None = None
    private: bool = False
    license_: str | None = None
    base_model: str | None = None


@dataclass(frozen=True, slots=True)
class Resources:
    """What a build may use: threads, bytes of weights in flight, a folder, and a Ray cluster.

    A checkpoint from the Hub is stored in ``keep_source`` as it is read.
    """

    jobs: _Some | None = None
    max_memory: _Some = 2**30
    keep_source: Path | None = None
    cluster: str | None = None
    cluster_jobs: _Some | None = None

    @property
    def threads(self) -> int:
        """How many there are, all usable cores unless it is said."""
        return self.jobs or usable_cores()


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How quants are built. A ``recipe`` is a file that ``quantkit recipe`` wrote."""

    files: FileOptions = field(default_factory=FileOptions)
    encoding: EncodingOptions = field(default_factory=EncodingOptions)
    text: TextOptions = field(default_factory=TextOptions)
    gptq: GptqOptions = field(default_factory=GptqOptions)
    bnb: BnbOptions = field(default_factory=BnbOptions)
    recipe: Path | None = None
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    contest: ContestOptions = field(default_factory=ContestOptions)
    checks: CheckOptions = field(default_factory=CheckOptions)
    publication: PublicationOptions = field(default_factory=PublicationOptions)
    resources: Resources = field(default_factory=Resources)
    converter: ConverterOptions = field(default_factory=ConverterOptions)


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """How an importance matrix is made.

    Of a GGUF ``gpu_layers`` are run on a GPU. Of a checkpoint, experts with fewer than
    ``min_tokens`` borrow some, ``max_memory`` bytes of activations stay in memory, and
    ``random_tokens`` measure speed without a text. The matrices of ``earlier`` are added, and
    ``plot`` is a picture of where the tokens of a mixture went.
    """

    text: TextOptions = field(default_factory=TextOptions)
    gpu_layers: Annotated[int, Meta(ge=0)] = 0
    min_tokens: Annotated[int, Meta(ge=0)] = 256
    max_memory: _Some = 4 * 2**30
    random_tokens: bool = False
    earlier: tuple[Path, ...] = ()
    plot: Path | None = None


def changed(options: Any) -> frozenset[str]:
    """Which options, by the command line's names, are not what they are where nobody says so."""
    return frozenset(_changed(options))


def _changed(options: Any) -> "Iterator[str]":
    for one in fields(options):
        value = getattr(options, one.name)
        if is_dataclass(value):
            yield from _changed(value)
        elif value != one.default:
            yield _TYPED.get(one.name, one.name)
