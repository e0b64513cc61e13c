"""Which input of the model is which tensor's of the GGUF, by what both were made of."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch

from quantkit.calibration.lockstep.forward import LockstepForward
from quantkit.calibration.statistics import Sums
from quantkit.checkpoint.checkpoint import Checkpoint, Range, stored_view
from quantkit.encodings import ggml
from quantkit.encodings.encoding import encoding
from quantkit.families.model import Block, Model, Target

# Halves of a matrix of latent attention, which llama.cpp multiplies by what the model never has.
_ABSORBED = ("attn_k_b.weight", "attn_v_b.weight")


class Inputs:
    """Finds what goes into the matrices of a GGUF's tensors."""

    def __init__(self, checkpoint: Checkpoint, forward: LockstepForward) -> None:
        """Look at the names: ``forward`` runs what ``checkpoint`` holds, described or not."""
        self._checkpoint = checkpoint
        self._description = checkpoint.description
        self._stored = stored_view(checkpoint).tensors
        self._forward = forward
        self._starts: dict[Path, list[tuple[int, str]]] = {}
        for tensor in self._stored.values():
            self._starts.setdefault(tensor.file, []).append((tensor.offset, tensor.name))
        for starts in self._starts.values():
            starts.sort()

    def entries(self, model: Model, sums: Mapping[str, Sums]) -> tuple[dict[str, Sums], list[str]]:
        """What a GGUF's tensors see, by name, and the names of those of which that is not known.

        A tensor has an entry if each of its matrices has the columns of the parameter's, in the
        same order: its first row is a row of it.

        Args:
            model: what the converter makes of the checkpoint.
            sums: by parameter.

        Raises:
            CheckpointError: a weight cannot be read.

        """
        sites = self._sites(sums)
        found, without = {}, []
        for target in model.targets:
            if target.layer is None or not target.name.endswith(".weight"):
                continue
            if target.name.endswith(_ABSORBED):
                without.append(target.name)
                continue
            parts = [self._seen(target, number, sites, sums) for number in range(_matrices(target))]
            seen = [part for part in parts if part is not None]
            if len(seen) == len(parts):
                squares = np.stack([squares for squares, _ in seen])
                counts = np.array([count for _, count in seen], np.float32)
                found[target.name] = Sums(squares, counts)
            elif target.is_linear:
                without.append(target.name)
        return found, without

    def first_rows(self, target: Target) -> Iterator[list[tuple[str, int]]]:
        """What the first row of each of a target's matrices is made of.

        That is stored tensors, and which row of them, counted over all of their matrices.
        """
        rows = target.shape[-2]
        for first in range(0, target.n_rows, rows):
            yield self._made_of(target, first, _block_at(target, first))

    def _sites(self, sums: Mapping[str, Sums]) -> dict[str, tuple[str, int | None]]:
        """By stored tensor, the parameter that it is in, and as which expert if it is one."""
        sites: dict[str, tuple[str, int | None]] = {}
        for parameter, seen in sums.items():
            for names in self._forward.parameters.origins[parameter].sources.values():
                are_experts = len(names) == len(seen.counts) > 1
                for number, name in enumerate(names):
                    sites[name] = (parameter, number if are_experts else None)
        return sites

    def _seen(
        self,
        target: Target,
        matrix: int,
        sites: Mapping[str, tuple[str, int | None]],
        sums: Mapping[str, Sums],
    ) -> tuple[np.ndarray[tuple[int], np.dtype[np.float32]], float] | None:
        """The squares and the count of one matrix."""
        rows = target.shape[-2] if len(target.shape) > 1 else 1
        is_computed = self._is_computed(target)
        block = _block_at(target, matrix * rows)
        for stored, row in self._made_of(target, matrix * rows, block):
            if stored not in sites:
                continue
            parameter, expert = sites[stored]
            seen = sums[parameter]
            if seen.squares.shape[1] != target.columns:
                continue
            if expert is None and len(seen.counts) > 1:
                rows_of_all = prod(self._stored[stored].shape[:-1])
                expert = row * len(seen.counts) // rows_of_all
            if is_computed and not self._has_row(target, matrix * rows, parameter, expert):
                continue
            return seen.squares[expert or 0], float(seen.counts[expert or 0])
        return None

    def _is_computed(self, target: Target) -> bool:
        return self._description is not None and target.name in self._description.computed

    def _made_of(self, target: Target, row: int, block: Block) -> list[tuple[str, int]]:
        """The stored tensors, and rows of them, that a row of a target is made of."""
        if self._description is None or not self._is_computed(target):
            above = 0
            if block.matrix is not None:
                above = block.matrix * self._stored[block.source].shape[1]
            return [(block.source, above + block.row)]
        (ranges,) = self._description.rows.needs([(target.name, row, 1)])
        return [self._tensor_at(part) for part in ranges]

    def _tensor_at(self, part: Range) -> tuple[str, int]:
        starts = self._starts[part.file]
        offset, name = starts[bisect_right(starts, (part.start, "\U0010ffff")) - 1]
        return name, (part.start - offset) // self._stored[name].row_bytes

    def _has_row(self, target: Target, row: int, parameter: str, expert: int | None) -> bool:
        """Whether a row of a computed tensor is one of a parameter's matrix, as it is."""
        kind = self._checkpoint.tensors[target.name].dtype
        if kind not in ("F32", "MXFP4"):
            return False
        if expert is None:
            values = self._forward.parameters.load([parameter])[parameter]
        else:
            values = self._forward.expert(parameter, expert)
        assert self._description is not None  # noqa: S101 - or it would not be computed
        raw = self._description.rows.rows(target.name, row, 1, self._description.rows.read)
        if kind == "F32":
            row_values = np.frombuffer(raw, "<f4").copy()
        else:
            row_values = ggml.decode(np.frombuffer(raw, np.uint8), encoding(kind))
        wanted = torch.from_numpy(row_values).to(values.device)
        return any(
            matrix.shape[-1] == len(wanted) and bool((matrix == wanted).all(-1).any())
            for matrix in (values, values.T)
        )


def _matrices(target: Target) -> int:
    return prod(target.shape[:-2])


def _block_at(target: Target, row: int) -> Block:
    """The block that a row of all matrices begins."""
    for block in target.blocks:
        if row < block.rows:
            return block
        row -= block.rows
    raise ValueError(f"{target.name} has no row {row} more")
