"""The converter describes a model: what it would write, as expressions. In its own process.

The tree's ``ModelBase`` runs unchanged, on leaves that know a tensor's name, shape and dtype, with
what it hands to its writer kept instead of written. Tried and measured in ``docs/design.md``.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from conversion import base, get_model_class
from conversion.base import LazyTorchTensor, ModelBase, ModelType, get_model_architecture
from gguf.lazy import LazyBase, LazyNumpyTensor

from quantkit.checkpoint.converter import child, lazily, library
from quantkit.checkpoint.converter.channel import Channel
from quantkit.checkpoint.converter.child import RefusedError
from quantkit.checkpoint.converter.expressions import (
    Leaf,
    Part,
    Run,
    apply,
    evaluate,
    is_lazy,
    leaves_of,
    matrix_of,
    name_of,
    reads,
    rows_of_sources,
    shape_of,
)

# What may be read while a model is described: a value, a scale, a list of ids. A converter that
# looks at more is refused by name.
_SMALL_READ = 16 * 2**20
_SMALL_IN_ALL = 256 * 2**20
# Values that converters look at when they ask for them; larger tensors stay expressions.
_LOOKED_AT = 4096
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
LazyTorchTensor._dtype_map.setdefault(torch.int32, np.int32)


@dataclass(frozen=True, slots=True)
class Captured:
    """A tensor that the converter hands to its writer: its numbers, and the type it would have."""

    name: str
    data: Any
    stored: str
    shape: tuple[int, ...]


@dataclass
class Described:
    """A described model, of whose tensors rows are given as they are asked for."""

    source: "Source"
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

    def _matrix(self, part: Part) -> Any:
        """A whole matrix, of which slabs are asked for one after the other."""
        key = id(part.node), part.first, part.stop
        if key not in self._matrices:
            while len(self._matrices) >= _KEPT_MATRICES:
                self._matrices.popitem(last=False)
            self._matrices[key] = evaluate(part)
        return self._matrices[key]


def _place(captured: Captured, row: int, rows: int) -> tuple[Part, list[Any], int | None]:
    """Where rows of a target are found.

    Returns:
        what to evaluate, the casts that follow, and, where that is more than these rows, the row
        within it that they begin at.

    """
    node, shape = captured.data, captured.shape
    n_axes = len(shape_of(node))
    if len(shape) == 1:
        return Part(node, 0, shape_of(node)[0] if shape_of(node) else 1), [], 0
    if n_axes == 2 or len(shape) == 2:
        return Part(node, row, row + rows), [], None
    number, first = divmod(row, shape[-2])
    is_of_one = first + rows <= shape[-2] and prod(shape[1:-2]) == 1
    if is_of_one and (found := matrix_of(node, number)) is not None:
        return Part(found[0], first, first + rows), found[1], None
    per = prod(shape[1:-1])
    number, inside = divmod(row, per)
    return Part(node, number, -(-(row + rows) // per)), [], inside


@dataclass
class Source:
    """The checkpoint's tensors, which the parent reads."""

    channel: Channel
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    is_described: bool = False
    n_read: int = 0
    n_small: int = 0
    looked_at: list[str] = field(default_factory=list)

    def read(self, name: str, first: int, count: int, *, bounded: bool = True) -> torch.Tensor:
        """Rows of a tensor along its first axis; ``bounded``: refused where that is much."""
        dtype, shape = self.tensors[name]
        kind = LazyTorchTensor._dtype_str_map[dtype]
        size = count * prod(shape[1:]) * kind.itemsize
        if not self.is_described:
            self.n_read += size
            self.n_small += size if bounded else 0
            if bounded and (size > _SMALL_READ or self.n_small > _SMALL_IN_ALL):
                raise RefusedError(
                    f"it reads the {size:,} bytes of {name} while it describes, which quantkit "
                    "does not let it"
                )
            if name not in self.looked_at:
                self.looked_at.append(name)
        self.channel.send({"read": name, "first": first, "count": count})
        _, data = self.channel.receive()
        if len(data) != size:
            raise RefusedError(f"{name} could not be read")
        if not size:
            return torch.empty((count, *shape[1:]) if shape else (), dtype=kind)
        return (
            torch.frombuffer(data, dtype=torch.uint8)
            .view(kind)
            .reshape((count, *shape[1:]) if shape else ())
        )

    def lazy(self, name: str) -> Any:
        """A tensor as the converter's lazy one."""
        dtype, shape = self.tensors[name]
        meta = LazyTorchTensor.meta_with_dtype_and_shape(
            LazyTorchTensor._dtype_str_map[dtype], shape
        )
        return LazyTorchTensor(meta=meta, args=(Leaf(name, shape, self.read),), func=Leaf.load)

    def pre_tokenizer(self) -> str:
        """What the parent calls the tokenizer's way to split text."""
        self.channel.send({"pre": True})
        answer, _ = self.channel.receive()
        if "refused" in answer:
            raise RefusedError(answer["refused"])
        return str(answer["pre"])


def describe(request: Mapping[str, Any], channel: Channel) -> tuple[Described, dict[str, Any]]:
    """Describe the model, or the projector, of a folder of small files.

    Raises:
        RefusedError: the converter does not know it, or wants what it must not have.

    """
    folder = Path(request["folder"])
    child.mark_foreign(str(folder))
    child.allow_writing(str(folder.parent))
    for name, (dtype, _) in request["tensors"].items():
        if dtype not in LazyTorchTensor._dtype_str_map:
            raise RefusedError(f"it has no number type for {name}, which is stored as {dtype}")
    tensors = {name: (dtype, tuple(shape)) for name, (dtype, shape) in request["tensors"].items()}
    source = Source(channel, tensors)
    targets: list[Captured] = []
    with torch.inference_mode(), _capturing(source, targets, Path(request["header"])):
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


@contextmanager
def _capturing(source: Source, targets: list[Captured], header: Path) -> Iterator[None]:
    """Put ours in the places of what reads, writes, encodes and trusts."""

    def index_tensors(self: Any, remote_hf_model_id: str | None = None) -> dict[str, Any]:
        del remote_hf_model_id
        found: dict[str, Any] = {}
        for name in source.tensors:
            item = self.filter_tensors((name, lambda name=name: source.lazy(name)))
            if item is None:
                continue
            if item[0] in found:
                raise RefusedError(f"two tensors would be its {item[0]}, one of them {name}")
            found[item[0]] = item[1]
        return found

    def add_tensor(
        self: Any, name: str, tensor: Any, raw_shape: Any = None, raw_dtype: Any = None,
        **_: Any,
    ) -> None:  # fmt: skip
        if type(tensor).__name__ == "LazyChunkedTensor":
            raise RefusedError(f"it gives {name} in a form that quantkit does not read")
        shape = tuple(raw_shape or tensor.shape)
        kind = raw_dtype
        if kind is None:
            kind = _PLAIN[np.dtype(tensor.dtype).name]
        is_blocks = tensor.dtype == np.uint8
        byte_shape = shape
        if not is_blocks and kind in gguf.GGML_QUANT_SIZES:
            with suppress(ValueError):
                byte_shape = gguf.quant_shape_to_byte_shape(shape, kind)
        n_bytes = prod(byte_shape)
        if is_blocks:
            shape = gguf.quant_shape_from_byte_shape(shape, kind)
        self.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, raw_dtype=kind)
        targets.append(Captured(name, tensor, kind.name, tuple(shape)))

    real_header = gguf.GGUFWriter.write_header_to_file

    def write_header(self: Any, path: Path | None = None) -> None:
        del path
        real_header(self, header)

    def write_no_tensors(self: Any, **_: Any) -> None:
        self.write_ti_data_to_file()

    def quantize(data: Any, kind: gguf.GGMLQuantizationType) -> Any:
        """The numbers as they are; they are encoded later, by us. Fails where the real one does."""
        elements, _ = gguf.GGML_QUANT_SIZES[kind]
        if elements > 1 and data.shape[-1] % elements:
            raise gguf.QuantError(f"rows of {data.shape[-1]} are no blocks of {kind.name}")
        return data

    def to_eager(cls: type, value: Any) -> Any:
        """Values where they are few; else the expression itself, which does as well."""
        asked_by = sys._getframe(1).f_code.co_name
        is_large = is_lazy(value) and (
            prod(shape_of(value)) > _LOOKED_AT or len(shape_of(value)) > 1
        )
        if is_large and asked_by != "wrapped_fn" and not source.is_described:
            return value
        return _real_to_eager(cls, value)

    known_pre = base.TextModel.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(known_pre(self, tokenizer))
        except NotImplementedError:
            return source.pre_tokenizer()

    with _replaced(
        (ModelBase, "index_tensors", index_tensors),
        (ModelBase, "_nvfp4_pack", staticmethod(_nvfp4_pack)),
        (ModelBase, "_mxfp4_expert_tensor", _mxfp4_expert_tensor),
        (base.TextModel, "get_vocab_base_pre", get_vocab_base_pre),
        (base, "np", _LazyNumpy()),
        (LazyTorchTensor, "_wrap_fn", classmethod(_wrap_fn)),
        (LazyTorchTensor, "device", property(lambda _: torch.device("cpu"))),
        (gguf.GGUFWriter, "add_tensor", add_tensor),
        (gguf.GGUFWriter, "write_header_to_file", write_header),
        (gguf.GGUFWriter, "write_tensors_to_file", write_no_tensors),
        (gguf.quants, "quantize", quantize),
        (LazyBase, "to_eager", classmethod(to_eager)),
        *library.vocabularies(),
        *lazily.replacements(source, _mxfp4_rows, _LazyNumpy.stack),
    ):
        yield


@contextmanager
def _replaced(*replacements: tuple[Any, str, Any]) -> Iterator[None]:
    before = [(owner, name, owner.__dict__.get(name)) for owner, name, _ in replacements]
    try:
        for owner, name, value in replacements:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


_real_to_eager = LazyBase.__dict__["to_eager"].__func__
_real_wrap_fn = LazyBase.__dict__["_wrap_fn"].__func__


def _wrap_fn(
    cls: type, function: Callable[..., Any], *, use_self: Any = None, meta_noop: Any = False
) -> Callable[..., Any]:
    """What the method it stands for gives, where constants and devices take part.

    torch does not combine a constant with a tensor that has no numbers, and one that was moved to
    the device of such a tensor has lost its own. So constants are lazy, too, lazy tensors are on
    the processor, where their numbers will be, and nothing is moved.
    """
    wrapped = _real_wrap_fn(cls, function, use_self=use_self, meta_noop=meta_noop)
    name = name_of(function)

    def call(*arguments: Any, **named: Any) -> Any:
        target = use_self if use_self is not None else arguments[0]
        if name in ("item", "tolist"):
            return getattr(_real_to_eager(cls, target), name)()
        if name in ("to", "cpu"):
            named.pop("device", None)
            arguments = tuple(a for a in arguments if not isinstance(a, str | torch.device))
            if not named and len(arguments) == (0 if use_self is not None else 1):
                return target
        return wrapped(*_lazy_constants(arguments), **named)

    return call


def _lazy_constants(value: Any) -> Any:
    if isinstance(value, list | tuple):
        items = [_lazy_constants(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    is_constant = isinstance(value, torch.Tensor) and not is_lazy(value)
    return LazyTorchTensor.from_eager(value) if is_constant else value


_PLAIN = {
    "float32": gguf.GGMLQuantizationType.F32,
    "float16": gguf.GGMLQuantizationType.F16,
    "int32": gguf.GGMLQuantizationType.I32,
    "int16": gguf.GGMLQuantizationType.I16,
    "int8": gguf.GGMLQuantizationType.I8,
}


class _LazyNumpy:
    """numpy, whose ``stack`` takes lazy arrays."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def stack(arrays: Sequence[Any], axis: int = 0) -> Any:
        if not any(map(is_lazy, arrays)):
            return np.stack(arrays, axis)
        shape = list(arrays[0].shape)
        shape.insert(axis, len(arrays))
        meta = LazyNumpyTensor.meta_with_dtype_and_shape(arrays[0].dtype, tuple(shape))
        return LazyNumpyTensor(
            meta=meta, args=(list(arrays),), kwargs={"axis": axis}, func=_stacked
        )


def _stacked(arrays: Sequence[Any], axis: int = 0) -> Any:
    return np.stack(arrays, axis)


_stacked.__qualname__ = _stacked.__name__ = "stack"


def _keeps_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function each of whose rows is made of the same rows of its arguments."""
    function.keeps_rows = True  # type: ignore[attr-defined]
    return function


_NAN_SCALE = 0x7F  # of E4M3, without its sign
_pack_nvfp4 = ModelBase.__dict__["_nvfp4_pack"].__func__


@_keeps_rows
def _nvfp4_rows(weight: torch.Tensor, scale: torch.Tensor) -> Any:
    if bool(((scale.view(torch.uint8) & 0x7F) == _NAN_SCALE).any()):
        raise RefusedError("a scale of its NVFP4 blocks is NaN, which llama.cpp reads as 0")
    return _pack_nvfp4(weight, scale)[0]


def _nvfp4_pack(weight: Any, scale: Any) -> tuple[Any, list[int]]:
    """What the method it stands for gives, lazily."""
    rows, blocks = shape_of(scale) if is_lazy(scale) else tuple(scale.shape)
    meta = LazyNumpyTensor.meta_with_dtype_and_shape(np.uint8, (rows, blocks // 4 * 36))
    packed = LazyNumpyTensor(meta=meta, args=(weight, scale), func=_nvfp4_rows)
    return packed, [rows, blocks // 4 * 64]


_repack_mxfp4 = ModelBase.__dict__["repack_mxfp4_blocks"].__func__


@_keeps_rows
def _mxfp4_rows(packed: torch.Tensor, scale: torch.Tensor) -> Any:
    return _repack_mxfp4(packed, scale)


def _mxfp4_expert_tensor(self: Any, loaders: Sequence[tuple[Any, Any]]) -> Any:
    """What the method it stands for gives, one expert at a time."""
    del self
    experts = []
    for packed_of, scale_of in loaders:
        packed, scale = packed_of(), scale_of()
        rows, columns = packed.shape
        meta = LazyNumpyTensor.meta_with_dtype_and_shape(np.uint8, (rows, columns // 16 * 17))
        experts.append(LazyNumpyTensor(meta=meta, args=(packed, scale), func=_mxfp4_rows))
    return _LazyNumpy.stack(experts)
