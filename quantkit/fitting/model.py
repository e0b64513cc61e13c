"""What `fit` knows of a model, wherever it is: its shape, its variants, what builds them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantkit.families.model import Decoder
from quantkit.fitting.shape import Shape
from quantkit.fitting.variants import Buildable, Variant
from quantkit.verification.hollow import HeaderOnly

Origin = Literal["bundled", "config", "checkpoint", "hub", "gguf", "artifacts"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A model in a format that transformers loads.

    ``n_bytes`` of weights are ``exact`` or ``modelled``; None where the format cannot hold the
    model, and ``note`` says why.
    """

    name: str
    n_bytes: int | None
    label: Literal["exact", "modelled"]
    note: str


@dataclass(frozen=True, slots=True)
class SizedModel:
    """A model and its variants, largest first.

    ``hollow`` are the files that llama.cpp loads in a dry run; there are none where ``gguf`` is
    here as a whole. ``model`` is None for a GGUF, which may be ``unquantized``, and for what
    llama.cpp's converter describes, which is a GGUF yet to be made; ``describer`` is then that
    converter's version. ``stored`` are folders for transformers that were found; where there are
    none, a model is shown as it would be stored. ``n_fetched`` bytes of a checkpoint came over the
    network. ``projector`` are the tensor bytes of its vision or audio part, of which there is one
    beside any variant. ``buildable`` is what its variants are planned from, None where they are
    there already.
    """

    title: str
    origin: Origin
    shape: Shape
    variants: tuple[Variant, ...]
    n_parameters: int
    n_active: int
    model: Decoder | None
    gguf: Path | None
    hollow: tuple[HeaderOnly, ...]
    stored: tuple[Stored, ...] = ()
    unquantized: bool = False
    describer: str | None = None
    n_fetched: int = 0
    projector: int = 0
    buildable: Buildable | None = None

    @property
    def is_as_it_is(self) -> bool:
        """Whether it is a GGUF that is quantized already, of which nothing is planned."""
        return self.origin in ("gguf", "hub") and self.model is None and not self.unquantized
