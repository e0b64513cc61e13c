"""Artifacts that transformers loads: a folder of safetensors shards, config.json and tokenizer.

Which bytes a format makes of a matrix is its codec's business (see `Codec`). Here every tensor gets
its place in a shard before a weight is read, exactly as a GGUF does.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from quantkit.checkpoint.names import INDEX, LICENSES
from quantkit.core.errors import CheckpointError
from quantkit.core.files import has_file, read_file
from quantkit.core.tensors import Bytes
from quantkit.encodings.encoding import Encoding
from quantkit.families.model import Decoder, Target
from quantkit.formats.place import Place
from quantkit.formats.safetensors import (
    Shard,
    StoredTensor,
    place,
    place_shards,
    write_index,
)
from quantkit.planning.quants import Quant

SHARD_SIZE = 5 * 10**9
_SCRATCH = ".scratch"
_TRIAL_HEADER = 32 * 10**6  # of a GGUF, with a vocabulary
_SIDE_FILES = ("generation_config.json", *LICENSES)


@dataclass(frozen=True, slots=True)
class Part:
    """One stored tensor of a matrix.

    Every ``elements`` weights give it ``bytes`` bytes, so that a slab's share is known. With 0
    elements it is made when the whole matrix has been encoded. A ``scratch`` part is needed until
    then and is not in the artifact.
    """

    tensor: StoredTensor
    elements: int = 0
    bytes: int = 0
    scratch: bool = False

    def share(self, start: int, stop: int) -> tuple[int, int]:
        """The range of its bytes that weights ``start`` to ``stop`` of the matrix give."""
        return start // self.elements * self.bytes, -(-stop // self.elements) * self.bytes


class Codec(Protocol):
    """What a format makes of one matrix."""

    @property
    def encoding(self) -> Encoding:
        """Its name in plans."""

    def parts(self, name: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The tensors stored for the matrix called ``name`` in the checkpoint."""

    def encode(self, raw: Bytes, dtype: str, columns: int) -> list[Bytes]:
        """The bytes that a slab gives to each part with elements, in their order.

        Raises:
            OverflowError: a weight is too large for the format.

        """

    def complete(
        self, name: str, shape: tuple[int, ...], scratch: Mapping[str, Bytes]
    ) -> dict[str, Bytes]:
        """The bytes of each part without elements, by name, from those of the scratch parts."""


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """One matrix of the model in a folder: its published name, its shape, what is stored of it."""

    name: str
    shape: tuple[int, ...]
    codec: Codec
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class StoredTarget:
    """What a folder holds of one target."""

    target: Target
    encoding: Encoding
    matrices: tuple[StoredMatrix, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(p.tensor.n_bytes for m in self.matrices for p in m.parts if not p.scratch)


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """What a build of one quant will write; ``tensors`` are parallel to the model's targets."""

    quant: Quant
    tensors: tuple[StoredTarget, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors, without headers."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits per weight over all tensors."""
        stored = (tensor.target.n_elements for tensor in self.tensors if tensor.matrices)
        return 8 * self.n_bytes / sum(stored)


@dataclass(frozen=True, slots=True)
class Alike:
    """A model with one target of each kind: all of a kind take the same, so one is planned.

    ``counts`` says how many there are of each, by its name.
    """

    model: Decoder
    counts: Mapping[str, int]

    def n_bytes(self, plan: FolderPlan) -> int:
        """Bytes of all tensors of the whole model, of which ``plan`` has one of each kind."""
        return sum(self.counts[stored.target.name] * stored.n_bytes for stored in plan.tensors)

    def bits_per_weight(self, plan: FolderPlan) -> float:
        """Mean bits per weight of the whole model, as `FolderPlan.bits_per_weight`."""
        targets = (stored.target for stored in plan.tensors if stored.matrices)
        return 8 * self.n_bytes(plan) / sum(self.counts[t.name] * t.n_elements for t in targets)


def one_of_each(model: Decoder) -> Alike:
    """What of a model must be planned to know what all of it takes."""
    counts = Counter((t.role, t.shape, t.stored) for t in model.targets)
    seen = {(t.role, t.shape, t.stored): t for t in model.targets}
    kept = replace(model, targets=tuple(seen.values()))
    return Alike(kept, {target.name: counts[kind] for kind, target in seen.items()})


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A file that is all header: config.json, the tokenizer's files, the index."""

    name: str
    header: bytes
    tensors: tuple[StoredTensor, ...] = ()
    offsets: tuple[int, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return len(self.header)


@dataclass(frozen=True)
class FolderLayout:
    """The files of one artifact in a folder.

    ``record`` is what the manifest says of the format, with the versions of what encodes under
    ``tools``; ``session`` is entered around encoding. There are no ``remarks`` as a rule: config
    and tokenizer are the checkpoint's own.
    """

    plan: FolderPlan
    name: str
    shards: tuple[Shard, ...]
    small_files: tuple[SmallFile, ...]
    digest: str
    record: Mapping[str, Any]
    session: Callable[[], AbstractContextManager[object]] = nullcontext
    scratch: Shard | None = None
    settled: bool = False
    remarks: tuple[str, ...] = ()

    takes = None

    @property
    def folder(self) -> str:
        """The artifact's folder."""
        return self.name

    @property
    def opened(self) -> str:
        """The folder."""
        return self.name

    @property
    def own(self) -> "FolderLayout":
        """It encodes by its codecs."""
        return self

    @property
    def trial_bytes(self) -> int:
        """Of a GGUF that shows whether it runs: Q8_0 of every weight, and the vocabulary."""
        n_elements = sum(stored.target.n_elements for stored in self.plan.tensors)
        return n_elements * 17 // 16 + _TRIAL_HEADER

    def depends_on(self, imatrix: str | None, search: str) -> dict[str, Any]:  # noqa: ARG002
        """Its plan, and the versions of what encodes."""
        return {"plan": self.digest, "tools": self.record.get("tools")}

    def remarking(self, remarks: Sequence[str]) -> "FolderLayout":  # noqa: ARG002
        """The same: config and tokenizer are the checkpoint's own."""
        return self

    def without_headers(self) -> "FolderLayout":
        """The same: its headers are short."""
        return self

    @cached_property
    def files(self) -> tuple[Shard | SmallFile, ...]:
        """All files; until it is settled, scratch as the last of them."""
        index = (SmallFile(INDEX, write_index(self.shards)),) if len(self.shards) > 1 else ()
        scratch = (self.scratch,) if self.scratch and not self.settled else ()
        return (*self.shards, *index, *self.small_files, *scratch)

    @property
    def final_files(self) -> tuple[Shard | SmallFile, ...]:
        """All files but the scratch."""
        return tuple(file for file in self.files if file is not self.scratch)

    @property
    def n_bytes(self) -> int:
        """Bytes of all files; where tensors are ``late``, at most a few bytes more than in fact."""
        return sum(file.n_bytes for file in self.final_files)

    def places(self, tensor: int, row: int, rows: int) -> list[Place]:
        """Where some rows of a target go, one place per part that slabs give bytes to."""
        target = self.plan.tensors[tensor]
        if not target.matrices:
            return []
        columns = target.target.columns
        rows_each = max(1, target.target.n_rows // len(target.matrices))
        number, first = divmod(row, rows_each)
        found = []
        for part in target.matrices[number].parts:
            if part.elements:
                start, stop = part.share(first * columns, (first + rows) * columns)
                whole = self.place_of(part.tensor.name)
                found.append(Place(whole.file, whole.offset + start, stop - start))
        return found

    def place_of(self, name: str) -> Place:
        """Where a stored tensor lies, by its name."""
        return self._place_of[name]

    @cached_property
    def _place_of(self) -> dict[str, Place]:
        # Places in scratch keep their number, beyond all files, when it is gone.
        gone = (self.scratch,) if self.scratch and self.settled else ()
        return {
            tensor.name: Place(number, offset, tensor.n_bytes)
            for number, file in enumerate((*self.files, *gone))
            for tensor, offset in zip(file.tensors, file.offsets, strict=True)
        }

    def encode(self, tensor: int, matrix: int, raw: Bytes, dtype: str) -> list[Bytes]:
        """What a slab gives to each of its `places`."""
        target = self.plan.tensors[tensor]
        if not target.matrices:
            return []
        return target.matrices[matrix].codec.encode(raw, dtype, target.target.columns)

    def complete(self, read: Callable[[Place], Bytes]) -> Iterator[tuple[StoredTensor, Bytes]]:
        """What is made of whole matrices, after their slabs: tensors with their true shapes.

        Args:
            read: bytes that slabs left at a place.

        """
        for target in self.plan.tensors:
            for matrix in target.matrices:
                parts = {part.tensor.name: part for part in matrix.parts if not part.elements}
                scratch = {
                    part.tensor.name: read(self.place_of(part.tensor.name))
                    for part in matrix.parts
                    if part.scratch
                }
                done = matrix.codec.complete(matrix.name, matrix.shape, scratch) if parts else {}
                for name, data in done.items():
                    tensor = parts[name].tensor
                    if tensor.late:
                        tensor = replace(tensor, shape=(data.size,))
                    yield tensor, data

    def finished(self, known: Mapping[str, StoredTensor]) -> "FolderLayout":
        """The layout with the true shapes of the late tensors, and without scratch."""
        shards = tuple(
            place(x.name, [known.get(t.name, t) for t in x.tensors], len(x.header))
            for x in self.shards
        )
        return replace(self, shards=shards, settled=True)


def lay_out_folder(
    plan: FolderPlan,
    name: str,
    small_files: Mapping[str, bytes],
    record: Mapping[str, Any],
    shard_size: int | None = None,
    session: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> FolderLayout:
    """Place a plan's tensors in shards.

    Args:
        plan: of one quant.
        name: of the artifact and its folder.
        small_files: contents by name: config.json, tokenizer.
        record: what the manifest says of the format.
        shard_size: the most bytes of tensors per shard, None for 5 GB.
        session: entered around encoding.

    Raises:
        PlanError: a matrix is larger than a shard.

    """
    matrices = [matrix for target in plan.tensors for matrix in target.matrices]
    groups = [[p.tensor for p in m.parts if not p.scratch] for m in matrices]
    scratch = [p.tensor for m in matrices for p in m.parts if p.scratch]
    shards = place_shards(groups, shard_size or SHARD_SIZE)
    files = tuple(SmallFile(file, data) for file, data in small_files.items())
    digest = hashlib.sha256()
    for header in (file.header for part in (shards, files) for file in part):
        digest.update(header)
    return FolderLayout(
        plan,
        name,
        shards,
        files,
        digest.hexdigest(),
        record,
        session,
        place(_SCRATCH, scratch) if scratch else None,
    )


def carried_files(folder: Path) -> dict[str, bytes]:
    """What an artifact takes over from its checkpoint as it is: tokenizer, generation, licence.

    Raises:
        CheckpointError: one of them cannot be read.

    """
    from quantkit.checkpoint.tokenizer import tokenizer_files

    own = [folder / n for n in _SIDE_FILES if has_file(folder / n, error=CheckpointError)]
    try:
        files = (*tokenizer_files(folder), *own)  # some templates lie in a folder of their own
        return {file.relative_to(folder).as_posix(): read_file(file) for file in files}
    except OSError as error:
        raise CheckpointError(
            f"{error.filename} cannot be read ({error.strerror}); check its permissions."
        ) from None
