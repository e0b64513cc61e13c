"""The converter describes a model: what it would write, as expressions. In its own process.

The tree's ``ModelBase`` runs unchanged, on leaves that know a tensor's name, shape and dtype, with
what it hands to its writer kept instead of written. Tried and measured in ``docs/design.md``.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from conversion import get_model_class
from conversion.base import LazyTorchTensor, ModelBase, ModelType, get_model_architecture

from quantkit.checkpoint.converter import confined
from quantkit.checkpoint.converter.captured import Captured, StoredTensors
from quantkit.checkpoint.converter.channel import Channel
from quantkit.checkpoint.converter.confined import RefusedError
from quantkit.checkpoint.converter.expressions import (
    apply,
    evaluate,
    leaves_of,
    matrix_of,
    reads,
)
from quantkit.checkpoint.converter.nodes import Rows, is_lazy, shape_of
from quantkit.checkpoint.converter.replaced import capturing
from quantkit.checkpoint.converter.runs import Run, rows_of_sources

# Matrices of a stack that were evaluated as a whole and are asked for slab by slab.
_KEPT_MATRICES = 2

# What the converter makes of floats as they are, and so do we: _FLOATS, and what is asked for.
_OF_FLOATS = ("F32", "F16", "BF16", "Q8_0")

_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_FLOATS = ("F32", "F16", "BF16")


@dataclass
class Described:
    """A described model, of whose tensors rows are given as they are asked for."""

    source: StoredTensors
    targets: list[Captured]
    _matrices: OrderedDict[tuple[int, int, int], Any] = field(default_factory=OrderedDict)

    def needs(self, units: Sequence[Sequence[int]]) -> list[list[tuple[str, int, int]]]:
        """For (target, row, rows) of one matrix each: rows of tensors that they are made of."""
        return [self._needs(*unit) for unit in units]

    def _needs(self, target: int, row: int, rows: int) -> list[tuple[str, int, int]]:
        captured = self.targets[target]
        if not is_lazy(captured.data):
            return []
        part, _, _ = _place(captured, row, rows)
        return [
            (leaf.node._args[0].name, leaf.first, leaf.stop - leaf.first) for leaf in reads(part)
        ]

    def rows(self, target: int, row: int, rows: int) -> "np.ndarray[Any, Any]":
        """Rows of a target, over all its matrices: float32, or blocks that it is stored in."""
        self.source.is_described = True
        captured = self.targets[target]
        per_matrix = captured.shape[-2] if len(captured.shape) > 2 else row + rows
        pieces = []
        while rows:
            count = min(rows, per_matrix - row % per_matrix)
            pieces.append(self._rows(captured, row, count))
            row, rows = row + count, rows - count
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _rows(self, captured: Captured, row: int, rows: int) -> "np.ndarray[Any, Any]":
        """Rows of one matrix of a target."""
        with torch.inference_mode():
            if not is_lazy(captured.data):
                flat = np.asarray(captured.data).reshape(prod(captured.shape[:-1]), -1)
                value: Any = flat[row : row + rows]
            else:
                part, after, inner = _place(captured, row, rows)
                value = self._matrix(part) if inner is not None else evaluate(part)
                value = apply(after, value)
                if inner is not None:
                    per = prod(captured.shape[1:-1])
                    count = 1 if len(captured.shape) == 1 else (part.stop - part.first) * per
                    value = value.reshape(count, -1)[inner : inner + rows]
        if isinstance(value, torch.Tensor):
            value = value.float().numpy()
        if value.dtype.kind == "f":
            value = np.ascontiguousarray(value, np.float32)
            if captured.stored not in _FLOATS:  # a type that is not the user's to choose
                value = gguf.quants.quantize(value, gguf.GGMLQuantizationType[captured.stored])
        return np.ascontiguousarray(value).view(np.uint8).reshape(-1)

    def _matrix(self, part: Rows) -> Any:
        """A whole matrix, of which slabs are asked for one after the other."""
        key = id(part.node), part.first, part.stop
        if key not in self._matrices:
            while len(self._matrices) >= _KEPT_MATRICES:
                self._matrices.popitem(last=False)
            self._matrices[key] = evaluate(part)
        return self._matrices[key]


def _place(captured: Captured, row: int, rows: int) -> tuple[Rows, list[Any], int | None]:
    """Where rows of a target are found.

    Returns:
        what to evaluate, the casts that follow, and, where that is more than these rows, the row
        within it that they begin at.

    """
    node, shape = captured.data, captured.shape
    n_axes = len(shape_of(node))
    if len(shape) == 1:
        return Rows(node, 0, shape_of(node)[0] if shape_of(node) else 1), [], 0
    if n_axes == 2 or len(shape) == 2:
        return Rows(node, row, row + rows), [], None
    number, first = divmod(row, shape[-2])
    is_of_one = first + rows <= shape[-2] and prod(shape[1:-2]) == 1
    if is_of_one and (found := matrix_of(node, number)) is not None:
        return Rows(found[0], first, first + rows), found[1], None
    per = prod(shape[1:-1])
    number, inside = divmod(row, per)
    return Rows(node, number, -(-(row + rows) // per)), [], inside


def describe(request: Mapping[str, Any], channel: Channel) -> tuple[Described, dict[str, Any]]:
    """Describe the model, or the projector, of a folder of small files.

    Raises:
        RefusedError: the converter does not know it, or wants what it must not have.

    """
    folder = Path(request["folder"])
    confined.mark_foreign(str(folder))
    confined.allow_writing(str(folder.parent))
    for name, (dtype, _) in request["tensors"].items():
        if dtype not in LazyTorchTensor._dtype_str_map:
            raise RefusedError(f"it has no number type for {name}, which is stored as {dtype}")
    tensors = {name: (dtype, tuple(shape)) for name, (dtype, shape) in request["tensors"].items()}
    source = StoredTensors(channel, tensors)
    targets: list[Captured] = []
    with torch.inference_mode(), capturing(source, targets, Path(request["header"])):
        model = _open_model(folder, request)
        model.write()
        _require_all_experts(model)
    source.is_described = True
    used = leaves_of(target.data for target in targets if is_lazy(target.data))
    used.update(source.looked_at)
    return Described(source, targets), {
        "targets": [_answer(target) for target in targets],
        "unused": [name for name in tensors if name not in used],
        "n_read": source.n_read,
        "has_projector": _knows_projector(folder),
    }


def _require_all_experts(model: Any) -> None:
    """Refuse experts that a class held back until all of a layer are there, which never came.

    Most classes say so themselves (``Unprocessed experts``); others write the model without them.
    """
    for name in ("_experts", "_experts_cache"):
        held = getattr(model, name, None) or ()
        layers = held.values() if isinstance(held, Mapping) else held
        for layer in layers:
            if isinstance(layer, Mapping) and layer:
                raise RefusedError(
                    f"of the experts that {next(iter(layer))} is one of, some are missing or more "
                    "than config.json says"
                )


def _answer(target: Captured) -> dict[str, Any]:
    """A target for the parent: with the runs of the checkpoint's rows that it is, if it is."""
    runs = rows_of_sources(target.data) if is_lazy(target.data) else None
    found = None
    if runs is not None and target.stored in _OF_FLOATS and target.data.dtype != np.uint8:
        per_matrix = target.shape[-2] if len(target.shape) > 1 else 1
        found = [
            [[run.source, run.row, run.rows] for run in _joined(matrix)]
            for matrix in _by_matrix(runs, per_matrix)
        ]
    return {"name": target.name, "stored": target.stored, "shape": target.shape, "runs": found}


def _by_matrix(runs: Sequence[Run], rows: int) -> list[list[Run]]:
    """Runs cut where matrices of so many rows end."""
    matrices: list[list[Run]] = []
    left = 0
    for run in runs:
        done = 0
        while done < run.rows:
            if not left:
                matrices.append([])
                left = rows
            count = min(left, run.rows - done)
            matrices[-1].append(Run(run.source, run.row + done, count))
            done += count
            left -= count
    return matrices


def _joined(runs: Sequence[Run]) -> list[Run]:
    """Runs of which none goes on where the one before it ends."""
    found: list[Run] = []
    for run in runs:
        last = found[-1] if found else None
        if last and last.source == run.source and last.row + last.rows == run.row:
            found[-1] = Run(last.source, last.row, last.rows + run.rows)
        else:
            found.append(run)
    return found


def _knows_projector(folder: Path) -> bool:
    """Whether the converter has a class for the vision or audio part of such a model."""
    hparams = ModelBase.load_hparams(folder, False)
    try:
        get_model_class(get_model_architecture(hparams, ModelType.MMPROJ), mmproj=True)
    except Exception:  # noqa: BLE001 - whatever it is, the text part is described without it
        return False
    return True


def _open_model(folder: Path, request: Mapping[str, Any]) -> Any:
    """The converter's model, as ``convert_hf_to_gguf.py`` makes it."""
    is_projector = request["projector"]
    kind = ModelType.MMPROJ if is_projector else ModelType.TEXT
    hparams = ModelBase.load_hparams(folder, False)
    architecture = get_model_architecture(hparams, kind)
    try:
        found: Any = get_model_class(architecture, mmproj=is_projector)
    except NotImplementedError:
        raise RefusedError(f"unknown:{architecture}") from None
    mtp = request["mtp"]
    if mtp is not None and not found.supports_mtp_export:
        raise RefusedError(f"mtp:{architecture}")
    if mtp is None and hasattr(found, "opt_num_mtp_layers"):
        # Those classes fail where their config promises no such layers, and none are there.
        mtp = any("mtp." in name for name in request["tensors"])
    found.no_mtp = mtp is False  # of the class, as convert_hf_to_gguf.py does: anew for each model
    return found(
        folder,
        _TYPES[request["type"]],
        Path("/dev/null"),
        hparams=hparams,
    )
