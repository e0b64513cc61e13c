"""A source model as quantkit sees it: names, shapes, dtypes and rows, whatever it is stored as."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from quantkit.checkpoint.gguf import Header
from quantkit.checkpoint.names import folder_name, without_shard
from quantkit.checkpoint.remote import RemoteRepo
from quantkit.core.tensors import Bytes, SourceTensor
from quantkit.families.model import Target

# (name, first row, count) -> little-endian bytes, 1-D
RowReader: TypeAlias = Callable[[str, int, int], Bytes]


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes ``start`` to ``stop`` (exclusive) of a weight file."""

    file: Path
    start: int
    stop: int


# (tensor as it is stored, first row along its first axis, count) -> its bytes
StoredReader: TypeAlias = Callable[[str, int, int], Any]


class ComputedRows(Protocol):
    """Gives rows of tensors that lie in no file, from rows of those that do."""

    def needs(self, units: Sequence[tuple[str, int, int]]) -> list[tuple[Range, ...]]:
        """The bytes that rows are made of, for (name, first row, number of rows) each."""

    def range_of(self, name: str, first: int, count: int) -> Range:
        """Where rows of a stored tensor lie, along its first axis."""

    def rows(self, name: str, first: int, count: int, read: StoredReader) -> Bytes:
        """Rows of a computed tensor."""

    def tokenizer(self) -> dict[str, Any]:
        """The checkpoint's tokenizer as the converter's libraries open it: see `library.tell`."""

    def read(self, name: str, first: int, count: int) -> Any:
        """Rows of a stored tensor, read where it lies."""

    def close(self) -> None:
        """Let go of what computes; it begins again when it is needed."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What is known of the tokens of a described checkpoint.

    ``frame`` are the ids before and after every text, None where the checkpoint's own tokenizer
    could not be asked; ``mended`` are keys that the converter has otherwise.
    """

    frame: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    mended: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Description:
    """What llama.cpp's converter says of a checkpoint.

    ``header`` is that of the GGUF that it would write, ``targets`` are its tensors and where their
    rows come from, ``version`` says which converter it was. ``computed`` are tensors that lie in no
    file, whose rows come from ``rows``. ``n_read`` bytes of weights were looked at. ``stored`` are
    all tensors as they lie in the files. ``mtp`` is what the user wished (see ``Wish``). ``tokens``
    says what of its vocabulary was mended.
    ``has_projector``: the converter knows a vision or audio part of such a model. ``mended`` are
    hyperparameters that it has otherwise than config.json.
    """

    header: Header
    targets: tuple[Target, ...]
    version: str
    computed: frozenset[str]
    rows: ComputedRows
    n_read: int
    stored: Mapping[str, SourceTensor]
    mtp: bool | None
    tokens: Tokens = Tokens()
    has_projector: bool = False
    mended: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A source model, known from what describes it and the headers of its weight files.

    ``tensors`` holds every tensor of every file, by name; ``files`` the weight files in the
    order of their names, which is the order they are read in; tensors may share their bytes, as
    tied ones do. A checkpoint on the Hub has its
    small files in ``path`` and only headers of its weights: ``files`` are then names that nothing
    need lie under, and ``repo`` says where the weights are. Where tensors do not lie in their files
    as they are described, ``read_rows`` gives their rows, and offsets only say in which order to
    read; it is called from one thread at a time. ``header`` is a GGUF's, whose ``path`` is its
    first file and whose ``config`` is empty; ``description`` is of a checkpoint that llama.cpp's
    converter describes, not a family of ours. ``remarks`` are sentences on what was found odd and
    left out.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, SourceTensor]
    files: tuple[Path, ...]
    repo: RemoteRepo | None = None
    read_rows: RowReader | None = None
    header: Header | None = None
    description: Description | None = None
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What people call it: by its GGUF, the last part of its repository's id, or its folder."""
        if self.header is not None:
            return without_shard(self.path.name)
        return self.repo.repo_id.rpartition("/")[2] if self.repo else folder_name(self.path)


def stored_view(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint with its tensors as they are stored, not as llama.cpp's converter has them."""
    if checkpoint.description is None:
        return checkpoint
    tensors = dict(checkpoint.description.stored)
    return replace(checkpoint, tensors=tensors, read_rows=None, description=None)
