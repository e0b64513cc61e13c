"""What stands in the places of what the converter reads, writes, encodes and trusts with."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from conversion import base
from conversion.base import LazyTorchTensor, ModelBase
from gguf.lazy import LazyBase, LazyNumpyTensor

from quantkit.checkpoint.converter import lazily, library
from quantkit.checkpoint.converter.captured import Captured, StoredTensors
from quantkit.checkpoint.converter.confined import RefusedError
from quantkit.checkpoint.converter.nodes import is_lazy, name_of, shape_of

# Values that converters look at when they ask for them; larger tensors stay expressions.
_LOOKED_AT = 4096


@contextmanager
def capturing(source: StoredTensors, targets: list[Captured], header: Path) -> Iterator[None]:
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
