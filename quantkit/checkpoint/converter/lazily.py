"""Lazy stand-ins for what some models' converters do to large tensors while they describe.

Each is of one class of the converter's ``conversion/``, which a user's own tree may lack; then it
is left out. ``docs/converter.md`` lists every step that looks at values.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from math import prod
from typing import Any, Protocol

import gguf
import torch
from gguf.lazy import LazyNumpyTensor

from quantkit.checkpoint.converter.nodes import is_lazy, is_leaf

# (owner, attribute, what stands in its place)
Replacement = tuple[Any, str, Any]

# Of two tensors that may be the same, so much is compared at once.
_COMPARED = 2**22


class Reads(Protocol):
    """Gives rows of stored tensors; see `captured.Source`."""

    tensors: Any

    def read(self, name: str, first: int, count: int, *, bounded: bool = True) -> torch.Tensor:
        """Rows along the first axis; ``bounded``: refused where that is much."""


def replacements(
    source: Reads, mxfp4_rows: Callable[..., Any], stack: Callable[..., Any]
) -> Iterator[Replacement]:
    """What stands in the places of such steps.

    Args:
        source: the checkpoint's tensors.
        mxfp4_rows: packs an expert's rows, each of the same row of its arguments.
        stack: numpy's, of lazy arrays.

    """
    yield gguf, "LazyChunkedTensor", Chunked
    yield torch, "equal", _equal_of(source, torch.equal)
    for module, name, attribute, value in (
        ("deepseek", "DeepseekV4Model", "_write_mxfp4_expert_tensor",
         _deepseek_experts(mxfp4_rows, stack)),
        ("maple", "MapleModel", "_stack_experts", staticmethod(stack_experts)),
        ("minimax", "MiniMaxText01Model", "_get_suppress_tokens", _zero_tokens(source)),
    ):  # fmt: skip
        owner = _find(module, name)
        if owner is not None and attribute in vars(owner):
            yield owner, attribute, value


def _find(module: str, name: str) -> Any:
    try:
        return getattr(import_module(f"conversion.{module}"), name, None)
    except ImportError:
        return None


class Chunked:
    """gguf's ``LazyChunkedTensor``, as one lazy tensor of all its chunks."""

    def __new__(cls, chunks: Sequence[Callable[[], Any]], shape: Any, dtype: Any) -> Any:
        """Lazy rows of all chunks, which are lazy arrays of torch's tensors."""
        del shape, dtype
        return torch.cat([chunk()._args[0] for chunk in chunks], dim=0)


def stack_experts(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A stack whose experts are evaluated one at a time."""
    return torch.stack(list(tensors), dim=0)


def _deepseek_experts(mxfp4_rows: Callable[..., Any], stack: Callable[..., Any]) -> Any:
    def write(self: Any, bid: int, proj: str, tensor_key: Any) -> list[str]:
        """The packed experts of a layer, one at a time; returns the tensors that they are of."""
        consumed, experts = [], []
        for number in range(self.hparams["n_routed_experts"]):
            names = [
                f"layers.{bid}.ffn.experts.{number}.{proj}.{part}" for part in ("weight", "scale")
            ]
            if missing := [name for name in names if name not in self.model_tensors]:
                raise KeyError(f"Missing routed expert tensors for {missing[0]}")
            weight, scale = (self.model_tensors[name]() for name in names)
            experts.append(packed_mxfp4(weight, scale, mxfp4_rows))
            consumed += names
        self.gguf_writer.add_tensor(
            self.format_tensor_name(tensor_key, bid),
            stack(experts),
            raw_dtype=gguf.GGMLQuantizationType.MXFP4,
        )
        return consumed

    return write


def packed_mxfp4(weight: Any, scale: Any, mxfp4_rows: Callable[..., Any]) -> Any:
    """The blocks of a matrix of four bits and its scales, lazily."""
    rows, columns = weight.shape
    meta = LazyNumpyTensor.meta_with_dtype_and_shape("uint8", (rows, columns // 16 * 17))
    return LazyNumpyTensor(meta=meta, args=(weight, scale), func=mxfp4_rows)


def _zero_tokens(source: Reads) -> Any:
    def suppress(self: Any) -> list[int]:
        """Tokens beyond the vocabulary whose embeddings are zero, of which only those are read."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.dir_model)
        name = "model.embed_tokens.weight"
        first, rows = tokenizer.vocab_size, source.tensors[name][1][0]
        if first >= rows:
            return []
        zero = (source.read(name, first, rows - first) == 0).all(dim=1)
        return [first + int(row) for row in torch.nonzero(zero).flatten()]

    return suppress


def _equal_of(source: Reads, real: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def equal(one: Any, other: Any) -> bool:
        """Whether two tensors are the same; of large stored ones some rows at a time.

        Tied embeddings that are stored twice are read to their end, others to the first difference.
        """
        leaves = [_leaf_under(value) for value in (one, other)]
        if None in leaves:
            return real(one, other)
        (name, shape), (twin, twin_shape) = ((leaf.name, leaf.shape) for leaf in leaves)
        if shape != twin_shape or source.tensors[name][0] != source.tensors[twin][0]:
            return False
        at, step = 0, max(1, _COMPARED // max(1, prod(shape[1:])))
        while at < shape[0]:
            count = min(step, shape[0] - at)
            if not real(*(source.read(n, at, count, bounded=False) for n in (name, twin))):
                return False
            at += count
        return True

    return equal


def _leaf_under(value: Any) -> Any:
    """The stored tensor that a lazy one is, another number type aside; None if it is no such."""
    while is_lazy(value) and not is_leaf(value):
        is_cast = value._data is None and len(value._args) == 2
        if not is_cast or not isinstance(value._args[1], torch.dtype):
            return None
        value = value._args[0]
    return value._args[0] if is_lazy(value) and value._args[0].shape else None
