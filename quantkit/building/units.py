"""Units of work: slabs of source rows that are read once and encoded for every quant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.checkpoint import Description, Range
from quantkit.core.tensors import SourceTensor
from quantkit.families.model import Target

# Elements per unit: large enough that a unit's overhead vanishes, small enough that dozens fit in
# a gigabyte. It is fixed, not derived from --max-memory or --jobs, so that a journal written under
# one setting serves under any other.
UNIT_ELEMENTS = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Unit:
    """Consecutive rows of one matrix of one target.

    ``target`` is an index into the file order; ``row`` counts over all of the target's matrices;
    ``offset`` and ``n_bytes`` say where the rows lie in the source file. A unit without a source
    holds a target's computed values. ``first`` counts rows of the source. Where the source lies in
    no file, ``needs`` are the bytes that its rows are made of, and ``offset`` is where the last of
    them end.
    """

    target: int
    matrix: int
    row: int
    rows: int
    source: SourceTensor | None = None
    offset: int = 0
    n_bytes: int = 0
    first: int = 0
    needs: tuple[Range, ...] = ()


def cut_units(
    targets: Sequence[Target],
    sources: Mapping[str, SourceTensor],
    description: Description | None = None,
) -> list[Unit]:
    """The units of a model, in the order in which they lie in the checkpoint's files.

    Those of computed tensors come where all that they are made of has been passed.

    Units never cross a matrix, because each expert has its own importance, and never cut a head
    whose rows are to be interleaved.
    """
    units = []
    for index, target in enumerate(targets):
        if target.values:
            units.append(Unit(index, 0, 0, 1))
        row = 0
        per_matrix = target.shape[-2] if len(target.shape) > 1 else 1
        for block in target.blocks:
            source = sources[block.source]
            start = block.row
            if block.matrix is not None:
                start += block.matrix * source.shape[-2]
            step = max(1, UNIT_ELEMENTS // target.columns)
            if target.rope_heads and len(target.shape) > 1:
                head = target.shape[0] // target.rope_heads
                step = max(head, step // head * head)
            for first in range(0, block.rows, step):
                rows = min(step, block.rows - first)
                offset = source.offset + (start + first) * source.row_bytes
                n_bytes = rows * source.row_bytes
                matrix = (row + first) // per_matrix
                units.append(
                    Unit(index, matrix, row + first, rows, source, offset, n_bytes, start + first)
                )
            row += block.rows
    if description is not None:
        units = _placed(units, description)
    return sorted(units, key=lambda u: (str(u.source.file) if u.source else "", u.offset))


def _placed(units: Sequence[Unit], description: Description) -> list[Unit]:
    """Units of computed tensors with what they need, and where the last of that ends."""
    computed = {
        number: (unit.source.name, unit.first, unit.rows)
        for number, unit in enumerate(units)
        if unit.source is not None and unit.source.name in description.computed
    }
    placed = list(units)
    if not computed:
        return placed
    for number, needs in zip(
        computed, description.rows.needs(list(computed.values())), strict=True
    ):
        unit = units[number]
        if needs and unit.source is not None:
            last = max(needs, key=lambda part: (str(part.file), part.stop))
            source = replace(unit.source, file=last.file, offset=last.stop)
            placed[number] = replace(unit, source=source, offset=last.stop, needs=needs)
    return placed


def interleave_heads(raw: NDArray[np.uint8], head_dim: int, row_bytes: int) -> NDArray[np.uint8]:
    """Reorder the rows of each head from halves to pairs.

    transformers rotates the first half of a head against the second, llama.cpp neighbours: row
    ``half * head_dim / 2 + i`` of a head becomes row ``2 * i + half`` (``LlamaModel.permute`` in
    ``conversion/llama.py``).

    Args:
        raw: whole heads as bytes, 1-D.
        head_dim: rows per head.
        row_bytes: bytes per row; for a bias, of one element.

    """
    halves = raw.reshape(-1, 2, head_dim // 2, row_bytes)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(-1)
