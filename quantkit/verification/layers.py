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
from quantkit.verification.smoke import artifact_files

_SLAB = 1 << 24  # elements dequantized at a time
_NOT_IN_GGUF = {"Q1_0", "Q2_0"}  # what gguf 0.19 cannot decode
_LAYER = re.compile(r"(?:\w+\.)?blk\.\d+(?=\.)")
_LEAST_ROW = 0.1  # of the common size of rows
_SCORES, _EMBEDDINGS = "output.weight", "token_embd.weight"
_RUNS = 4  # of consecutive rows, where only some rows are looked at


@dataclass(frozen=True, slots=True)
class WeightError:
    """One tensor, or one expert of it.

    ``error`` is the root mean square of the difference, divided by that of the reference's
    weights: 0 for a copy, about 1.4 for a tensor that has nothing to do with it. ``row`` is the
    row (of the tensor or expert) of which that is worst, ``row_error`` how much it is there; rows
    below a tenth of the common size count as if they had that much.
    """

    tensor: str
    layer: int | None
    role: str
    expert: int | None
    encoding: str
    error: float
    row: int = 0
    row_error: float = 0.0


def weight_errors(
    artifact: Path, reference: Path, *, rows: int | None = None, partial: bool = False
) -> list[WeightError]:
    """The error of every tensor of an artifact, experts one by one.

    Where one of them has a matrix of its own for the scores of tokens, and the other takes that of
    the embeddings, the two are compared.

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
    _untie(ours, theirs)
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
    return [error for name in ours for error in _errors(name, ours[name], theirs[name], rows)]


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


def _untie(*artifacts: dict[str, "_Stored"]) -> None:
    """Give an artifact that lacks it what llama.cpp takes for the scores of tokens."""
    if any(_SCORES in tensors for tensors in artifacts):
        for tensors in artifacts:
            if _SCORES not in tensors and _EMBEDDINGS in tensors:
                tensors[_SCORES] = tensors[_EMBEDDINGS]


def _errors(name: str, ours: _Stored, theirs: _Stored, most: int | None) -> Iterator[WeightError]:
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
        found = _relative(ours, theirs, range(index * per_expert, (index + 1) * per_expert), most)
        expert = index if n_experts > 1 else None
        yield WeightError(name, layer, role, expert, ours.row.encoding.name, *found)


def _relative(
    ours: _Stored, theirs: _Stored, rows: range, most: int | None
) -> tuple[float, int, float]:
    """The error of some rows together, the worst of them, and its error."""
    step = max(1, _SLAB // ours.shape[-1])
    slabs = [(at, min(at + step, rows.stop)) for at in range(rows.start, rows.stop, step)]
    if most is not None and most < len(rows):
        each = -(-most // _RUNS)
        starts = {rows[i * (len(rows) - each) // (_RUNS - 1)] for i in range(_RUNS)}
        slabs = [(at, at + each) for at in sorted(starts)]
    gaps, sizes, numbers = [], [], []
    for start, stop in slabs:
        reference = theirs.widen(start, stop)
        gap = ours.widen(start, stop) - reference
        gaps.append(_squares(gap))
        sizes.append(_squares(reference))
        numbers.append(np.arange(start, stop))
    gap, size = np.concatenate(gaps), np.concatenate(sizes)
    if not size.any():
        error = float("inf") if gap.any() else 0.0
        return error, 0, error
    by_row = np.sqrt(gap / np.maximum(size, _LEAST_ROW**2 * size.mean()))
    worst = int(np.nanargmax(by_row)) if not np.isnan(by_row).all() else 0
    row = int(np.concatenate(numbers)[worst]) - rows.start
    return sqrt(gap.sum() / size.sum()), row, float(by_row[worst])


def _squares(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sum of the squares of each row."""
    wide = matrix.astype(np.float64)
    sums: NDArray[np.float64] = np.einsum("ij,ij->i", wide, wide)
    return sums
