"""Where every byte of a GGUF artifact goes, known before the first weight is read.

The order of metadata and tensors is llama-quantize's, and that of shards llama-gguf-split's
(``tools/gguf-split/gguf-split.cpp``), so that whole files come out the same.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from quantkit.checkpoint.imatrix import Imatrix
from quantkit.checkpoint.names import shard_name
from quantkit.core.errors import PlanError
from quantkit.core.units import format_size
from quantkit.families.keys import Kind, packed_entry
from quantkit.families.model import KeyValue
from quantkit.formats.gguf.metadata import ModelMetadata
from quantkit.formats.place import Place
from quantkit.planning.plan import Plan, PlannedTensor
from quantkit.planning.quants import SOURCE

ALIGNMENT = 32
_MAGIC, _VERSION, _QUANTIZATION_VERSION = b"GGUF", 3, 2
# What begins the name of a vision or audio part's file, by which llama.cpp's tools find it.
PROJECTOR = "mmproj-"
_FILE_TYPE = "general.file_type"
_COUNTS = "<IQQ"  # version, tensors, keys
_INFO_BYTES = 8 + 4 + 4 + 8  # of a tensor: its name's length, dimensions, type, offset
_LONGEST_OVERRIDE = 127  # bytes; llama-quantize keeps no more of a string it adds


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file: its name, its header, and where in it each tensor starts (bytes)."""

    name: str
    header: bytes
    tensors: tuple[PlannedTensor, ...]
    offsets: tuple[int, ...]
    n_bytes: int


@dataclass(frozen=True)
class GGUFLayout:
    """The files of one artifact. ``folder`` holds the shards of a split one, else None.

    ``remarks`` are the sentences that its user must hear (see `ModelMetadata`). ``takes`` says of a
    projector what it takes, ``vision``, ``audio`` or both; of a model it is None.
    """

    plan: Plan
    name: str
    folder: str | None
    files: tuple[PlannedFile, ...]
    remarks: tuple[str, ...] = ()
    takes: tuple[str, ...] | None = None

    trial_bytes = 0
    own = None

    @property
    def opened(self) -> str:
        """Its first file, within the output folder."""
        return f"{self.folder}/{self.files[0].name}" if self.folder else self.files[0].name

    @property
    def final_files(self) -> tuple[PlannedFile, ...]:
        """All of them."""
        return self.files

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.n_bytes for file in self.files)

    @property
    def digest(self) -> str:
        """The plan's hash: sha256 over all headers, which state every tensor and all metadata."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.header)
        return digest.hexdigest()

    @property
    def record(self) -> dict[str, Any]:
        """What a projector takes; of a model, its searched recipe and how it was chosen."""
        takes = {} if self.takes is None else {"takes": list(self.takes)}
        said = {"recipe": self.plan.record, "choice": self.plan.choice}
        return {**takes, **{key: dict(value) for key, value in said.items() if value}}

    def depends_on(self, imatrix: str | None, search: str) -> dict[str, Any]:
        """Its plan, importance, and how scales are chosen."""
        return {"plan": self.digest, "imatrix": imatrix, "search": search}

    def remarking(self, remarks: Sequence[str]) -> "GGUFLayout":
        """The same with more remarks."""
        return replace(self, remarks=(*self.remarks, *remarks))

    def chosen(self, how: Mapping[str, Any]) -> "GGUFLayout":
        """The same with what the manifest keeps of how it was chosen."""
        return replace(self, plan=replace(self.plan, choice=how))

    def without_headers(self) -> "GGUFLayout":
        """The same without headers."""
        return replace(self, files=tuple(replace(file, header=b"") for file in self.files))

    def places(self, tensor: int, row: int, rows: int) -> list[Place]:
        """Where some rows of a tensor of the plan go: one place."""
        file, offset = self._starts[tensor]
        row_bytes = self.plan.tensors[tensor].row_bytes
        return [Place(file, offset + row * row_bytes, rows * row_bytes)]

    @cached_property
    def _starts(self) -> list[tuple[int, int]]:
        return [(n, offset) for n, file in enumerate(self.files) for offset in file.offsets]


def lay_out(
    plan: Plan,
    metadata: ModelMetadata,
    imatrix: Imatrix | None = None,
    shard_size: int | None = None,
) -> GGUFLayout:
    """Place a plan's tensors in files.

    Args:
        plan: of one quant.
        metadata: of the model.
        imatrix: the one the plan was made with; it is named in the metadata.
        shard_size: the most tensor bytes per file, or None for one file. As with
            llama-gguf-split, headers come on top.

    Raises:
        PlanError: a tensor is larger than a shard.

    """
    name = file_name(plan, metadata)
    remarks = (*metadata.remarks, *plan.remarks)
    entries = _entries(plan, metadata, imatrix)
    if shard_size is None or sum(map(padded, plan.tensors)) <= shard_size:
        file = _place(f"{name}.gguf", entries, plan.tensors)
        return GGUFLayout(plan, name, None, (file,), remarks)
    shards = _divide(plan.tensors, shard_size)
    files = []
    for index, tensors in enumerate(shards):
        # llama-gguf-split sets the count last, because it learns it last.
        split = (
            packed_entry("split.no", index, Kind.UINT16),
            packed_entry("split.tensors.count", len(plan.tensors), Kind.INT32),
            packed_entry("split.count", len(shards), Kind.UINT16),
        )
        shard = shard_name(name, index, len(shards))
        files.append(_place(shard, (*entries, *split) if index == 0 else split, tensors))
    return GGUFLayout(plan, name, name, tuple(files), remarks)


def file_name(plan: Plan, metadata: ModelMetadata) -> str:
    """What a quant's file is called, without its ending."""
    return f"{metadata.base_name}-{plan.quant.in_file_names}"


def header_bytes(plan: Plan, metadata: ModelMetadata, imatrix: Imatrix | None, table: int) -> int:
    """Bytes of the header of the one file that `lay_out` would make; it is not made.

    Args:
        plan: as for `lay_out`.
        metadata: as for `lay_out`.
        imatrix: as for `lay_out`.
        table: what `table_bytes` says, which is the same for all quants of a model.

    """
    n_bytes = len(_MAGIC) + struct.calcsize(_COUNTS) + table
    return aligned(n_bytes + sum(len(e.packed) for e in _entries(plan, metadata, imatrix)))


def table_bytes(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Bytes that a header spends on tensors with such names and shapes."""
    return sum(_INFO_BYTES + len(name.encode()) + 8 * _n_dims(shape) for name, shape in tensors)


def lay_out_projector(plan: Plan, metadata: ModelMetadata, takes: tuple[str, ...]) -> GGUFLayout:
    """Place the tensors of a model's vision or audio part in the file that belongs to it.

    Its keys and the order of its tensors are the converter's, for llama-quantize has no part in it.

    Args:
        plan: with the encodings that the converter gives it.
        metadata: its keys, and the name of the model whose part it is.
        takes: ``vision``, ``audio`` or both.

    """
    name = f"{PROJECTOR}{metadata.base_name}-{plan.quant.name.upper()}"
    file = _place(f"{name}.gguf", metadata.entries, plan.tensors, as_converted=True)
    return GGUFLayout(plan, name, None, (file,), (*metadata.remarks, *plan.remarks), takes)


def _entries(plan: Plan, metadata: ModelMetadata, imatrix: Imatrix | None) -> list[KeyValue]:
    """All metadata of one quant; what the quant says anew comes last."""
    own = tuple(_quant_entries(plan, metadata, imatrix))
    said_anew = {entry.key for entry in own}
    return [*(entry for entry in metadata.entries if entry.key not in said_anew), *own]


def _quant_entries(
    plan: Plan, metadata: ModelMetadata, imatrix: Imatrix | None
) -> Iterable[KeyValue]:
    yield packed_entry("general.quantization_version", _QUANTIZATION_VERSION, Kind.UINT32)
    if plan.quant.name == SOURCE:
        yield from (entry for entry in metadata.entries if entry.key == _FILE_TYPE)
        return
    yield packed_entry(_FILE_TYPE, plan.quant.file_type, Kind.UINT32)
    if imatrix is None:
        return
    yield _text("quantize.imatrix.file", str(imatrix.path))
    if imatrix.datasets:
        yield _text("quantize.imatrix.dataset", imatrix.datasets[0])
    yield packed_entry("quantize.imatrix.entries_count", len(imatrix.entries), Kind.UINT32)
    if imatrix.chunk_count > 0:
        yield packed_entry("quantize.imatrix.chunks_count", imatrix.chunk_count, Kind.UINT32)


def _text(key: str, value: str) -> KeyValue:
    return packed_entry(key, value.encode("utf-8")[:_LONGEST_OVERRIDE], Kind.STRING)


def _divide(tensors: Sequence[PlannedTensor], shard_size: int) -> list[list[PlannedTensor]]:
    largest = max(tensors, key=padded)
    if padded(largest) > shard_size:
        raise PlanError(
            f"--shard-size is smaller than {largest.target.name} "
            f"({format_size(largest.n_bytes)}); use at least --shard-size {padded(largest)}."
        )
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        filled += padded(tensor)
        if filled > shard_size:
            shards.append([])
            filled = padded(tensor)
        shards[-1].append(tensor)
    return shards


def _place(
    name: str,
    entries: Sequence[KeyValue],
    tensors: Sequence[PlannedTensor],
    *,
    as_converted: bool = False,
) -> PlannedFile:
    parts = [_MAGIC, struct.pack(_COUNTS, _VERSION, len(tensors), len(entries))]
    parts.extend(entry.packed for entry in entries)
    relative = []
    end = 0
    for tensor in tensors:
        relative.append(end)
        parts.append(_tensor_info(tensor, end, as_converted=as_converted))
        end += padded(tensor)
    header = b"".join(parts)
    header += b"\0" * (-len(header) % ALIGNMENT)
    offsets = tuple(len(header) + offset for offset in relative)
    return PlannedFile(name, header, tuple(tensors), offsets, len(header) + end)


def _tensor_info(tensor: PlannedTensor, offset: int, *, as_converted: bool) -> bytes:
    name = tensor.target.name.encode("utf-8")
    dims = [*reversed(tensor.target.shape)]
    if not as_converted:
        dims = dims[: _n_dims(tensor.target.shape)]
    return (
        struct.pack("<Q", len(name))
        + name
        + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        + struct.pack("<iQ", tensor.encoding.id, offset)
    )


def _n_dims(shape: tuple[int, ...]) -> int:
    """Dimensions that a header states: ggml, which llama-quantize goes by, drops outer 1s."""
    return max(1, len(shape) - next((i for i, n in enumerate(shape) if n > 1), len(shape)))


def padded(tensor: PlannedTensor) -> int:
    """Bytes that a tensor takes in a file, up to where the next one may begin."""
    return aligned(tensor.n_bytes)


def aligned(n_bytes: int) -> int:
    """The multiple of the alignment that holds so many bytes."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
