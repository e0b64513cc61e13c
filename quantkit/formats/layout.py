"""What every artifact answers before a weight is read: its files, and where each byte goes.

`gguf.layout.GGUFLayout` is one GGUF, whole or split; `folder.FolderLayout` a folder that
transformers loads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from msgspec import Meta

from quantkit.core.tensors import Bytes
from quantkit.encodings.encoding import Encoding
from quantkit.families.model import Target
from quantkit.formats.place import Place
from quantkit.formats.safetensors import StoredTensor
from quantkit.planning.quants import Quant


@dataclass(frozen=True, slots=True)
class FileOptions:
    """The model's name, instead of its own, and from how many bytes on its files are split."""

    name: str | None = None
    shard_size: Annotated[int, Meta(ge=1)] | None = None


class PlannedTarget(Protocol):
    """One target of the model, and what it is stored as."""

    @property
    def target(self) -> Target:
        """Of the model."""

    @property
    def encoding(self) -> Encoding:
        """By its name in plans."""

    @property
    def n_bytes(self) -> int:
        """Bytes of all that is stored of it."""


class ArtifactPlan(Protocol):
    """What is stored of each target of a model."""

    @property
    def quant(self) -> Quant:
        """What was asked for."""

    @property
    def tensors(self) -> Sequence[PlannedTarget]:
        """In file order."""

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors, without padding and headers."""

    @property
    def bits_per_weight(self) -> float:
        """Mean over all weights."""


class LaidOutTensor(Protocol):
    """A tensor in a file."""

    @property
    def name(self) -> str:
        """As the file has it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As PyTorch has it, outermost first."""

    @property
    def dtype(self) -> str:
        """What it is stored as, by the format's name."""

    @property
    def n_bytes(self) -> int:
        """Its size."""


class LaidOutFile(Protocol):
    """A file of an artifact: a header, and bytes of tensors behind it."""

    @property
    def name(self) -> str:
        """Within the artifact's folder, or the output folder."""

    @property
    def header(self) -> bytes:
        """Its first bytes, written last."""

    @property
    def n_bytes(self) -> int:
        """Its size."""

    @property
    def tensors(self) -> Sequence[LaidOutTensor]:
        """In their order."""

    @property
    def offsets(self) -> Sequence[int]:
        """Where each tensor begins."""


class OwnEncoding(Protocol):
    """How a format encodes that shares no encoding with other artifacts."""

    @property
    def session(self) -> Callable[[], AbstractContextManager[object]]:
        """Entered around all that follows."""

    def encode(self, tensor: int, matrix: int, raw: Bytes, dtype: str) -> list[Bytes]:
        """What a slab gives to each of its places.

        Raises:
            OverflowError: a weight is too large for the format.

        """

    def complete(self, read: Callable[[Place], Bytes]) -> Iterator[tuple[StoredTensor, Bytes]]:
        """What is made of whole matrices, after their slabs."""

    def place_of(self, name: str) -> Place:
        """Where a stored tensor lies, by its name."""

    def finished(self, known: Mapping[str, StoredTensor]) -> "Layout":
        """The layout once the shapes of its late tensors are known."""


class Layout(Protocol):
    """The files of one artifact."""

    @property
    def plan(self) -> ArtifactPlan:
        """What is stored."""

    @property
    def name(self) -> str:
        """The artifact's, in the manifest."""

    @property
    def folder(self) -> str | None:
        """That its files lie in, within the output folder; None for a file that lies there."""

    @property
    def opened(self) -> str:
        """The path in the output folder that programs open: a GGUF's first file, or a folder."""

    @property
    def files(self) -> Sequence[LaidOutFile]:
        """In their order."""

    @property
    def final_files(self) -> Sequence[LaidOutFile]:
        """Those that stay once it is built."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the files that stay."""

    @property
    def trial_bytes(self) -> int:
        """About how many bytes of disk more it takes to run it in llama.cpp."""

    @property
    def digest(self) -> str:
        """The plan's sha256; empty where it is not known yet."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences that its user must hear."""

    @property
    def takes(self) -> tuple[str, ...] | None:
        """What a projector takes, ``vision``, ``audio`` or both; None for a model."""

    @property
    def record(self) -> Mapping[str, Any]:
        """What only the manifests of its format say."""

    @property
    def own(self) -> OwnEncoding | None:
        """What encodes it; None where a kernel does, once for all artifacts that want the same."""

    def places(self, tensor: int, row: int, rows: int) -> list[Place]:
        """Where some rows of a tensor of the plan go."""

    def depends_on(self, imatrix: str | None, search: str) -> dict[str, Any]:
        """What of the way to encode, beside the kernel, its bytes depend on.

        Args:
            imatrix: the sha256 of the importance matrix.
            search: how a kernel chooses scales.

        """

    def remarking(self, remarks: Sequence[str]) -> "Layout":
        """The same with more remarks, if they are its matter: they are about llama.cpp's GGUFs."""

    def without_headers(self) -> "Layout":
        """What is enough to write its tensors by: headers hold whole vocabularies."""
