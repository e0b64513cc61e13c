"""A bitsandbytes folder, whoever wrote it, as dequantized rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.core.documents import decode
from quantkit.core.errors import CheckpointError
from quantkit.core.printable import quoted
from quantkit.core.tensors import DTYPES, FLOAT_BYTES, TORCH_NAMES, SourceTensor
from quantkit.formats.bnb.codec import functional, require_bitsandbytes
from quantkit.formats.dequantized import Dequantized, read_bytes
from quantkit.formats.floats import to_bytes, to_torch

_STATE = ".quant_state.bitsandbytes__"
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")

_MOST_STATE_BYTES = 4096
_Size = Annotated[int, msgspec.Meta(ge=1, le=2**48)]

ReadRows = Callable[[int, int], NDArray[np.uint8]]


class _StoredState(msgspec.Struct, frozen=True):
    """A quant state as bitsandbytes writes it; what else it says is not needed."""

    quant_type: str
    blocksize: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    dtype: str
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(min_length=2, max_length=3)]
    nested_blocksize: Annotated[int, msgspec.Meta(ge=0, le=2**20)] = 0
    nested_offset: float = 0.0


@dataclass(frozen=True, slots=True)
class FourBitState:
    """What is stored beside 4-bit codes, read from a file's quant state."""

    kind: str
    block: int
    dtype: str
    shape: tuple[int, ...]
    nested_block: int = 0
    nested_offset: float = 0.0


def open_artifact(stored: Checkpoint) -> Dequantized:
    """Its weights as they were named before, dequantized by bitsandbytes when they are read.

    Raises:
        CheckpointError: a quantized weight lacks what belongs to it, or does not fit it.
        MissingPackageError: bitsandbytes is not installed.

    """
    require_bitsandbytes()
    tensors: dict[str, SourceTensor] = {}
    readers: dict[str, ReadRows] = {}
    for name, tensor in stored.tensors.items():
        state = read_state(stored.tensors, name)
        scales = stored.tensors.get(f"{name.removesuffix('weight')}SCB")
        if state is not None:
            _check_four_bit(stored.tensors, tensor, state)
            readers[name] = _four_bit_rows(stored.tensors, tensor, state)
            tensors[name] = _as_source(tensor, state.dtype, state.shape)
        elif tensor.dtype == "I8" and scales is not None:
            if len(tensor.shape) != 2 or scales.shape != tensor.shape[:1] or scales.dtype != "F32":
                raise _damaged(tensor, "SCB does not fit its weight")
            readers[name] = _eight_bit_rows(tensor, scales)
            tensors[name] = _as_source(tensor, "F32", tensor.shape)
        elif tensor.dtype in FLOAT_BYTES and not name.endswith((*_PARTS, ".SCB")):
            if not tensor.shape or not tensor.n_elements:
                raise _damaged(tensor, "it holds no numbers, or one without a shape")
            readers[name] = _plain_rows(tensor)
            tensors[name] = tensor
        elif not name.endswith((*_PARTS, ".SCB", ".weight_format")) and _STATE not in name:
            raise _damaged(tensor, f"it is {tensor.dtype} and nothing says how to read it")
    config = {k: v for k, v in stored.config.items() if k != "quantization_config"}
    checkpoint = replace(stored, config=config, tensors=tensors)
    return Dequantized(checkpoint, lambda name, row, rows: readers[name](row, rows))


def read_state(tensors: Mapping[str, SourceTensor], name: str) -> FourBitState | None:
    """The quant state of a weight, None where it has none.

    Raises:
        CheckpointError: it is not what bitsandbytes writes.

    """
    kind = next((k for k in ("nf4", "fp4") if f"{name}{_STATE}{k}" in tensors), None)
    if kind is None:
        return None
    tensor = tensors[f"{name}{_STATE}{kind}"]
    foreign = _damaged(tensor, "its quant state is not bitsandbytes'")
    if tensor.n_bytes > _MOST_STATE_BYTES:
        raise foreign
    facts = decode(
        bytes(read_bytes(tensor)),
        _StoredState,
        f"The quant state {quoted(tensor.name)} in {tensor.file}",
        error=CheckpointError,
        fix="build or copy it again",
    )
    if facts.quant_type != kind or facts.dtype not in DTYPES or not isfinite(facts.nested_offset):
        raise foreign
    return FourBitState(
        kind,
        facts.blocksize,
        DTYPES[facts.dtype],
        facts.shape,
        facts.nested_blocksize,
        facts.nested_offset,
    )


def _as_source(tensor: SourceTensor, dtype: str, shape: tuple[int, ...]) -> SourceTensor:
    return replace(tensor, dtype=dtype, shape=shape, n_bytes=prod(shape) * FLOAT_BYTES[dtype])


def _plain_rows(tensor: SourceTensor) -> ReadRows:
    def read(row: int, rows: int) -> NDArray[np.uint8]:
        return read_bytes(tensor, row * tensor.row_bytes, (row + rows) * tensor.row_bytes)

    return read


def _eight_bit_rows(tensor: SourceTensor, scales: SourceTensor) -> ReadRows:
    columns = tensor.shape[-1]

    def read(row: int, rows: int) -> NDArray[np.uint8]:
        import torch

        codes = torch.from_numpy(read_bytes(tensor, row * columns, (row + rows) * columns))
        scale = to_torch(read_bytes(scales, 4 * row, 4 * (row + rows)), "F32", rows)[0]
        weights = codes.view(torch.int8).view(rows, columns)
        return to_bytes(functional().int8_vectorwise_dequant(weights, scale))

    return read


def _four_bit_rows(
    tensors: Mapping[str, SourceTensor], tensor: SourceTensor, state: FourBitState
) -> ReadRows:
    absmax = tensors[f"{tensor.name}.absmax"]
    columns, size = state.shape[-1], prod(state.shape)

    def scales(first: int, last: int) -> NDArray[np.float32]:
        if not state.nested_block:
            return read_bytes(absmax, 4 * first, 4 * last).view(np.float32)
        book = read_bytes(tensors[f"{tensor.name}.nested_quant_map"]).view(np.float32)
        start, stop = first // state.nested_block, -(-last // state.nested_block)
        nested = tensors[f"{tensor.name}.nested_absmax"]
        outer = read_bytes(nested, 4 * start, 4 * stop).view(np.float32)
        block = np.arange(first, last) // state.nested_block - start
        codes = read_bytes(absmax, first, last)
        return book[codes] * outer[block] + np.float32(state.nested_offset)

    def read(row: int, rows: int) -> NDArray[np.uint8]:
        import torch

        bnb = functional()
        start, stop = row * columns, min(size, (row + rows) * columns)
        codes = torch.from_numpy(read_bytes(tensor, start // 2, -(-stop // 2))).view(-1, 1)
        quant_state = bnb.QuantState(
            absmax=torch.from_numpy(scales(start // state.block, -(-stop // state.block))),
            shape=torch.Size((rows, columns)),
            code=bnb.get_4bit_type(state.kind, device="cpu"),
            blocksize=state.block,
            quant_type=state.kind,
            dtype=getattr(torch, TORCH_NAMES[state.dtype]),
        )
        return to_bytes(bnb.dequantize_4bit(codes, quant_state))

    return read


def _check_four_bit(
    tensors: Mapping[str, SourceTensor], tensor: SourceTensor, state: FourBitState
) -> None:
    """Check that codes, absmax and what belongs to them have the sizes that the state asks for."""
    size = prod(state.shape)
    blocks = -(-size // state.block)
    wanted = {tensor.name: -(-size // 2), f"{tensor.name}.absmax": 4 * blocks}
    if state.nested_block:
        wanted[f"{tensor.name}.absmax"] = blocks
        wanted[f"{tensor.name}.nested_absmax"] = 4 * -(-blocks // state.nested_block)
        wanted[f"{tensor.name}.nested_quant_map"] = 4 * 256
    if state.shape[-1] % state.block:
        raise _damaged(
            tensor, "its rows are no whole blocks, which bitsandbytes gets wrong on CPUs"
        )
    for name, n_bytes in wanted.items():
        if name not in tensors or tensors[name].n_bytes != n_bytes:
            raise _damaged(tensor, f"{name} is missing or does not fit its quant state")


def _damaged(tensor: SourceTensor, what: str) -> CheckpointError:
    return CheckpointError(
        f"{tensor.name} in {tensor.file} cannot be dequantized: {what}; build or copy it again."
    )
