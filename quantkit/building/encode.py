"""One unit of a checkpoint encoded for every artifact of a build, and written to its places."""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import isfinite, isinf

import numpy as np
from numpy.typing import NDArray

from quantkit.building.output import PartialArtifact
from quantkit.building.units import Unit, interleave_heads
from quantkit.checkpoint.imatrix import Imatrix
from quantkit.core.errors import WeightsError
from quantkit.core.tensors import FLOAT_BYTES
from quantkit.encodings import ggml
from quantkit.encodings.encoding import Encoding, encoding
from quantkit.encodings.kernel import Kernel
from quantkit.encodings.slab import Slab
from quantkit.encodings.widen import first_nonfinite, largest_magnitude
from quantkit.families.model import Target
from quantkit.formats.layout import OwnEncoding

# Scales have 16 bits, so no block format holds more than 3e8. Near 1e15 some of ggml's kernels sum
# squares beyond float32, and then write zeros or abort the process.
_LARGEST_WEIGHT = 1e9


@contextmanager
def sessions(artifacts: Iterable[PartialArtifact]) -> Iterator[None]:
    """What formats want to be set up while their matrices are encoded and completed."""
    with ExitStack() as stack:
        for artifact in artifacts:
            if artifact.layout.own is not None:
                stack.enter_context(artifact.layout.own.session())
        yield


class Encoder:
    """What threads encode with; it keeps nothing between units."""

    def __init__(
        self, kernel: Kernel, imatrix: Imatrix | None, artifacts: Sequence[PartialArtifact]
    ) -> None:
        self._kernel = kernel
        self._imatrix = imatrix
        self._artifacts = artifacts

    def prepare(self, units: Iterable[Unit], compiling: Callable[[str], None]) -> None:
        """Compile what the kernel needs; ``compiling`` is told what takes a while."""
        imatrix = self._imatrix
        wanted = {
            (tensor.encoding, imatrix is not None and imatrix.columns_of(tensor.target) is not None)
            for artifact in self._artifacts
            if artifact.layout.own is None
            for tensor in artifact.layout.plan.tensors
        }
        self._kernel.prepare(
            sorted(wanted, key=lambda pair: (pair[0].name, pair[1])),
            {_read_as(unit.source.dtype) for unit in units if unit.source is not None},
            compiling,
        )

    def encode(
        self, unit: Unit, raw: NDArray[np.uint8], numbers: Container[int]
    ) -> list[list[int]]:
        """Encode one unit for every artifact and write it; per artifact, a CRC-32 per piece.

        Args:
            unit: what to encode.
            raw: its bytes as the checkpoint stores them; nothing for computed values.
            numbers: of the artifacts to encode it for.

        Raises:
            WeightsError: a weight is not finite, or too large for an encoding.

        """
        target = self._artifacts[0].layout.plan.tensors[unit.target].target
        wanted: dict[Encoding, list[int]] = defaultdict(list)
        crcs: list[list[int]] = [[] for _ in self._artifacts]
        for number, artifact in enumerate(self._artifacts):
            if number not in numbers:
                continue
            if (own := artifact.layout.own) is not None:
                crcs[number] = self._encode_matrix(artifact, own, unit, raw)
            else:
                wanted[artifact.layout.plan.tensors[unit.target].encoding].append(number)
        peak = check_weights(unit, target, raw)
        if unit.source is not None and not target.rope_heads:  # it lies there row for row
            for number in wanted.pop(encoding(unit.source.dtype), ()):
                crcs[number] = self._write(number, unit, raw)
        if not wanted:
            return crcs
        slab = _slab_of(unit, target, raw)
        if unit.source is None or unit.source.dtype not in FLOAT_BYTES:
            peak = float(np.abs(slab.rows).max())
        columns = None
        if self._imatrix is not None and any(kind.is_block for kind in wanted):
            columns = self._imatrix.columns_of(target)
        importance = None if columns is None else columns[unit.matrix]
        for kind, alike in wanted.items():
            if kind.is_block and peak > _LARGEST_WEIGHT:
                raise too_large(unit, kind)
            try:
                data = self._kernel.encode(slab, kind, importance).reshape(-1)
            except OverflowError:
                raise too_large(unit, kind) from None
            for number in alike:
                crcs[number] = self._write(number, unit, data)
        return crcs

    def _write(self, number: int, unit: Unit, data: NDArray[np.uint8]) -> list[int]:
        artifact = self._artifacts[number]
        places = artifact.layout.places(unit.target, unit.row, unit.rows)
        return artifact.write(places, [data.data])

    def _encode_matrix(
        self, artifact: PartialArtifact, own: OwnEncoding, unit: Unit, raw: NDArray[np.uint8]
    ) -> list[int]:
        """Encode one unit for an artifact that does so itself, rows in the checkpoint's order."""
        if unit.source is None:
            return []
        layout = artifact.layout
        try:
            pieces = own.encode(unit.target, unit.matrix, raw, unit.source.dtype)
        except OverflowError:
            raise too_large(unit, layout.plan.tensors[unit.target].encoding) from None
        places = layout.places(unit.target, unit.row, unit.rows)
        return artifact.write(places, [piece.data for piece in pieces])


def check_weights(unit: Unit, target: Target, raw: NDArray[np.uint8]) -> float:
    """The largest magnitude of a unit's floats; 0 where it holds blocks or none.

    Raises:
        WeightsError: one is not finite, or a block is damaged.

    """
    if unit.source is None:
        return 0.0
    dtype = unit.source.dtype
    if dtype not in FLOAT_BYTES:
        try:
            ggml.check(raw, encoding(dtype))
        except OverflowError as error:
            raise WeightsError(
                f"{_name(unit)} cannot be used ({error}); download the file again."
            ) from None
        return 0.0
    peak = largest_magnitude(raw, dtype)
    if not isfinite(peak) and not (target.is_limit and isinf(peak)):
        row, column = divmod(first_nonfinite(raw, dtype), target.columns)
        raise WeightsError(
            f"{_name(unit)} has a NaN or infinite weight (row {unit.row + row} of "
            f"{target.name}, column {column}); no quant of it can be right. Download the "
            "file again or ask the model's author."
        )
    return peak


def too_large(unit: Unit, kind: Encoding) -> WeightsError:
    """What to raise where a unit's weights leave an encoding's range."""
    return WeightsError(
        f"{_name(unit)} has weights that are too large for {kind.name}; choose f32 or bf16."
    )


def _slab_of(unit: Unit, target: Target, raw: NDArray[np.uint8]) -> Slab:
    """The unit's weights in the target's row order."""
    if unit.source is None:
        values = np.array(target.values, np.float32)
        return Slab(values.view(np.uint8), "F32", target.columns)
    dtype = unit.source.dtype
    if target.rope_heads and dtype in FLOAT_BYTES:
        head_dim = target.shape[0] // target.rope_heads
        is_bias = len(target.shape) == 1
        row_bytes = FLOAT_BYTES[dtype] if is_bias else unit.source.row_bytes
        raw = interleave_heads(raw, head_dim, row_bytes)
    return widened(raw, dtype, target.columns)


def widened(raw: NDArray[np.uint8], dtype: str, columns: int) -> Slab:
    """Rows as a slab; those of a GGUF's blocks as the floats that they stand for."""
    if dtype in FLOAT_BYTES:
        return Slab(raw, dtype, columns)
    return Slab(ggml.decode(raw, encoding(dtype)).view(np.uint8), "F32", columns)


def _name(unit: Unit) -> str:
    assert unit.source is not None  # noqa: S101 - computed values are finite and small
    return f"{unit.source.name} in {unit.source.file}"


def _read_as(dtype: str) -> str:
    """The floats that kernels get of what is stored."""
    return dtype if dtype in FLOAT_BYTES else "F32"
