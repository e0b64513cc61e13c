"""How far the weights of one artifact are from the reference's, tensor by tensor."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.gguf import HeaderTensor, read_header
from quantkit.core.errors import CompareError
from quantkit.encodings import ggml
from quantkit.verify.smoke import artifact_files

_SLAB = 1 << 24  # elements dequantized at a time
_NOT_IN_GGUF = {"Q1_0", "Q2_0"}  # what gguf 0.19 cannot decode
_LAYER = re.compile(r"(?:\w+\.)?blk\.\d+(?=\.)")
_RUNS = 4  # of consecutive rows, where only some rows are looked at


@dataclass(frozen=True, slots=True)
class WeightError:
    """One tensor, or one expert of it.

    ``error`` is the root mean square of the difference, divided by that of the reference's
    weights: 0 for a copy, about 1.4 for a tensor that has nothing to do with it.
    """

    tensor: str
    layer: int | None
    role: str
    expert: int | None
    encoding: str
    error: float


def weight_errors(
    artifact: Path, reference: Path, *, rows: int | None = None, partial: bool = False
) -> list[WeightError]:
    """The error of every tensor of an artifact, experts one by one.

    Args:
        artifact: a GGUF file or the first shard of a split one.
        reference: the same, with the same tensors.
        rows: about how many rows of each tensor or expert to look at, in evenly spaced runs; by
            default all.
        partial: the reference is of some first layers only, and the others are not looked at.

    Raises:
        CompareError: the two do not hold the same tensors.
        GGUFError: a file is missing or unsound.

    """
    ours, theirs = _tensors(artifact), _tensors(reference)
    if partial:
        layers = {_layer_of(name) for name in theirs} | {None}
        ours = {name: tensor for name, tensor in ours.items() if _layer_of(name) in layers}
    odd = sorted(ours.keys() ^ theirs.keys())
    odd += [name for name in ours.keys() & theirs.keys() if ours[name].shape != theirs[name].shape]
    if odd:
        raise CompareError(
            f"{artifact.name} and {reference.name} do not hold the same tensors, for example "
            f"{odd[0]}; compare artifacts of one model."
        )
    return [error for name in ours for error in _errors(ours[name], theirs[name], rows)]


def _layer_of(name: str) -> str | None:
    """The layer that a tensor is of, as ``blk.3`` or ``enc.blk.3``."""
    found = _LAYER.match(name)
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class _Stored:
    row: HeaderTensor
    file: Path
    offset: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.row.shape

    def widen(self, start: int, stop: int) -> NDArray[np.float32]:
        """Some rows (all dimensions but the last taken together) as float32."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        encoding = self.row.encoding
        row_bytes = self.shape[-1] // encoding.elements * encoding.bytes
        offset = self.offset + start * row_bytes
        raw = np.memmap(self.file, np.uint8, "r", offset, (stop - start, row_bytes))
        if encoding.name in _NOT_IN_GGUF:
            return ggml.decode(raw.reshape(-1), encoding).reshape(stop - start, -1)
        wide: NDArray[np.float32] = dequantize(raw, GGMLQuantizationType[encoding.name])
        return wide


def _tensors(artifact: Path) -> dict[str, _Stored]:
    found = {}
    for file in artifact_files(artifact):
        header = read_header(file)
        for row in header.tensors:
            found[row.name] = _Stored(row, file, header.data_offset + row.offset)
    return found


def _errors(ours: _Stored, theirs: _Stored, most: int | None) -> Iterator[WeightError]:
    name = ours.row.name
    block, _, rest = name.partition(".")
    layer = None
    if block == "blk":
        number, _, rest = rest.partition(".")
        layer = int(number)
    else:
        rest = name
    role = rest.removesuffix(".weight")
    rows = 1
    for size in ours.shape[:-1]:
        rows *= size
    n_experts = ours.shape[0] if len(ours.shape) == 3 else 1
    per_expert = rows // n_experts
    for index in range(n_experts):
        error = _relative(ours, theirs, range(index * per_expert, (index + 1) * per_expert), most)
        expert = index if n_experts > 1 else None
        yield WeightError(name, layer, role, expert, ours.row.encoding.name, error)


def _relative(ours: _Stored, theirs: _Stored, rows: range, most: int | None) -> float:
    step = max(1, _SLAB // ours.shape[-1])
    slabs = [(at, min(at + step, rows.stop)) for at in range(rows.start, rows.stop, step)]
    if most is not None and most < len(rows):
        each = -(-most // _RUNS)
        starts = {rows[i * (len(rows) - each) // (_RUNS - 1)] for i in range(_RUNS)}
        slabs = [(at, at + each) for at in sorted(starts)]
    difference = size = 0.0
    for start, stop in slabs:
        reference = theirs.widen(start, stop)
        gap = ours.widen(start, stop) - reference
        difference += float(np.square(gap, dtype=np.float64).sum())
        size += float(np.square(reference, dtype=np.float64).sum())
    if not size:
        return 0.0 if not difference else float("inf")
    return sqrt(difference / size)
