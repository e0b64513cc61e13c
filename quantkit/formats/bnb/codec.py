"""What bitsandbytes makes of a matrix, slab by slab, through its own functional API."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

from quantkit.core.packages import require
from quantkit.core.tensors import TORCH_NAMES, Bytes, as_array
from quantkit.encodings.encoding import Encoding
from quantkit.formats.floats import cast, to_bytes, to_torch
from quantkit.formats.folder import Part
from quantkit.formats.safetensors import StoredTensor

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCK = 256  # absmax values per block of their own, where they are quantized too
_CODES = 16
_LONGEST_OFFSET = 24  # characters of a float as Python writes it
_SCRATCH = "#float32"


@dataclass(frozen=True, slots=True)
class BnbOptions:
    """What a user can choose: weights per absmax, double quantization, modules to leave alone."""

    block_size: int = 64
    double_quant: bool = False
    keep: tuple[str, ...] = ()


def require_bitsandbytes() -> None:
    """Check that bitsandbytes is there, without importing it.

    Raises:
        MissingPackageError: bitsandbytes, or the torch that it needs, is not installed.

    """
    for package in ("bitsandbytes", "torch"):
        require(package, package, "bnb", "A bnb quant")


def functional() -> Any:
    """The functional API of bitsandbytes."""
    import bitsandbytes.functional

    return bitsandbytes.functional


@contextmanager
def one_thread() -> Iterator[None]:
    """Let each thread of a build compute by itself; torch's own threads would fight over cores."""
    import torch

    functional()
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


@dataclass(frozen=True, slots=True)
class FourBit:
    """Blocks of 4-bit codes with an absmax each: ``quantize_4bit``.

    ``nested`` is double quantization: the absmax values of the whole matrix, less their mean, are
    quantized to 8 bits (``compress_statistics``). Until a matrix is complete they are scratch.
    """

    kind: str  # nf4 or fp4
    block: int
    nested: bool
    dtype: str  # of the model: what the weights are cast to first, and dequantized to

    @property
    def encoding(self) -> Encoding:
        """Codes and absmax of one block; a nested absmax takes one byte and a share of others."""
        return Encoding(self.kind.upper(), -1, self.block, self.block // 2 + 4 - 3 * self.nested)

    def parts(self, name: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Codes, absmax, code book and the packed rest, as transformers names them."""
        size = prod(shape)
        blocks = -(-size // self.block)
        state = StoredTensor(self._state(name), "U8", (len(self._describe(shape)),))
        parts = [Part(StoredTensor(name, "U8", (-(-size // 2), 1)), 2, 1)]
        if self.nested:
            scratch = StoredTensor(f"{name}.absmax{_SCRATCH}", "F32", (blocks,))
            longest = len(self._describe(shape, 0.0)) - len("0.0") + _LONGEST_OFFSET
            state = StoredTensor(state.name, "U8", (longest,), late=True)
            nested = (-(-blocks // NESTED_BLOCK),)
            parts += [
                Part(scratch, self.block, 4, scratch=True),
                Part(StoredTensor(f"{name}.absmax", "U8", (blocks,))),
                Part(StoredTensor(f"{name}.nested_absmax", "F32", nested)),
                Part(StoredTensor(f"{name}.nested_quant_map", "F32", (256,))),
            ]
        else:
            parts.append(Part(StoredTensor(f"{name}.absmax", "F32", (blocks,)), self.block, 4))
        return (*parts, Part(StoredTensor(f"{name}.quant_map", "F32", (_CODES,))), Part(state))

    def encode(self, raw: Bytes, dtype: str, columns: int) -> list[Bytes]:
        """The codes, two to a byte, and the float32 absmax of each block.

        Raises:
            OverflowError: a weight is beyond the range of the model's dtype.

        """
        weights = cast(to_torch(raw, dtype, columns), self.dtype)
        codes, state = functional().quantize_4bit(
            weights, blocksize=self.block, quant_type=self.kind
        )
        return [to_bytes(codes), to_bytes(state.absmax)]

    def complete(
        self, name: str, shape: tuple[int, ...], scratch: Mapping[str, Bytes]
    ) -> dict[str, Bytes]:
        """The code book, and what double quantization makes of the absmax values."""
        bnb = functional()
        done = {f"{name}.quant_map": to_bytes(bnb.get_4bit_type(self.kind, device="cpu"))}
        offset = None
        if self.nested:
            (raw,) = scratch.values()
            absmax = to_torch(raw, "F32", raw.size // 4)[0]
            mean = absmax.mean()
            codes, state = bnb.quantize_blockwise(absmax - mean, blocksize=NESTED_BLOCK)
            offset = mean.item()
            done |= {
                f"{name}.absmax": to_bytes(codes),
                f"{name}.nested_absmax": to_bytes(state.absmax),
                f"{name}.nested_quant_map": to_bytes(state.code),
            }
        text = self._describe(shape, offset).encode()
        return done | {self._state(name): as_array(text)}

    def _state(self, name: str) -> str:
        return f"{name}.quant_state.bitsandbytes__{self.kind}"

    def _describe(self, shape: tuple[int, ...], offset: float | None = None) -> str:
        """What is not a tensor of a ``QuantState``, in its order, as JSON."""
        facts: dict[str, Any] = {
            "quant_type": self.kind,
            "blocksize": self.block,
            "dtype": TORCH_NAMES[self.dtype],
            "shape": shape,
        }
        if self.nested:
            facts |= {
                "nested_blocksize": NESTED_BLOCK,
                "nested_dtype": "float32",
                "nested_offset": offset,
            }
        return json.dumps(facts)


@dataclass(frozen=True, slots=True)
class EightBit:
    """Rows of int8 with a scale each: ``int8_vectorwise_quant`` of the float16 weights."""

    dtype: str  # of the model: what the weights are cast to before float16

    @property
    def encoding(self) -> Encoding:
        """The weights without the rows' scales."""
        return Encoding("INT8", -1, 1, 1)

    def parts(self, name: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Weights, scales (``SCB``) and the format's number, as ``Linear8bitLt`` saves them."""
        module = name.removesuffix("weight")
        rows, columns = shape
        return (
            Part(StoredTensor(name, "I8", shape), 1, 1),
            Part(StoredTensor(f"{module}SCB", "F32", (rows,)), columns, 4),
            Part(StoredTensor(f"{module}weight_format", "U8", ())),
        )

    def encode(self, raw: Bytes, dtype: str, columns: int) -> list[Bytes]:
        """The rows as int8, and the largest magnitude of each.

        Raises:
            OverflowError: a weight is beyond the range of float16.

        """
        weights = cast(cast(to_torch(raw, dtype, columns), self.dtype), "F16")
        rows, scales, _ = functional().int8_vectorwise_quant(weights)
        return [to_bytes(rows), to_bytes(scales)]

    def complete(
        self, name: str, shape: tuple[int, ...], scratch: Mapping[str, Bytes]
    ) -> dict[str, Bytes]:
        """The number that stands for rows."""
        del shape, scratch
        return {f"{name.removesuffix('weight')}weight_format": as_array(b"\0")}
