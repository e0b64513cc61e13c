"""AutoGPTQ's checkpoint format, version 1.

A linear layer of ``in`` inputs and ``out`` outputs becomes, in little-endian words of 32 bits:
``qweight`` int32 (in * bits / 32, out), levels packed along the inputs; ``qzeros`` int32 (groups,
out * bits / 32), zero points less one, packed along the outputs; ``scales`` float16 (groups, out);
``g_idx`` int32 (in), each input's group. Source: ``QuantLinear.pack`` in ``qlinear_cuda_old.py`` of
auto-gptq 0.7.1. Its three-bit layout, ten levels and a split one, is the same plain string of bits
as the others, lowest bit first.
"""

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Weights: TypeAlias = NDArray[np.float32]

PARTS = ("qweight", "qzeros", "scales", "g_idx")
_SLAB = 512  # rows packed at once
_WORD = 32


@dataclass(frozen=True, slots=True)
class Packed:
    """The four tensors of one linear layer."""

    qweight: NDArray[np.int32]
    qzeros: NDArray[np.int32]
    scales: NDArray[np.float16]
    g_idx: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Skipped:
    """Linear layers that are left alone, and those of a block that are not, experts aside.

    Names are ends of modules' paths.
    """

    unquantized: tuple[str, ...]
    quantized: tuple[str, ...]


def pack(
    levels: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32],
    bits: int,
) -> Packed:
    """Pack one matrix.

    Args:
        levels: (out, in).
        scales: (out, groups), values that float16 holds; groups are equally wide.
        zeros: (out, groups), whole numbers from 1.
        bits: per level.

    """
    columns, groups = levels.shape[1], scales.shape[1]
    return Packed(
        qweight=np.ascontiguousarray(_pack_rows(levels, bits).T),
        qzeros=_pack_rows((zeros.T - 1).astype(np.uint8), bits),
        scales=np.ascontiguousarray(scales.T.astype(np.float16)),
        g_idx=(np.arange(columns, dtype=np.int32) // (columns // groups)).astype(np.int32),
    )


def unpack(packed: Packed, bits: int, first: int = 0, count: int | None = None) -> Weights:
    """Rows of the weights, float32 (count, in): scale * (level - zero)."""
    stop = packed.qweight.shape[1] if count is None else first + count
    levels = _unpack_rows(np.ascontiguousarray(packed.qweight[:, first:stop].T), bits)
    zeros = _unpack_rows(packed.qzeros, bits)[:, first:stop].astype(np.float32) + 1
    scales = packed.scales[:, first:stop].astype(np.float32)
    out = np.empty(levels.shape, np.float32)
    for start in range(0, len(levels), _SLAB):
        rows = slice(start, start + _SLAB)
        zero, scale = zeros[:, rows].T[:, packed.g_idx], scales[:, rows].T[:, packed.g_idx]
        out[rows] = (levels[rows] - zero) * scale
    return out


def packed_shapes(
    shape: tuple[int, ...], bits: int, group_size: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The safetensors dtype and the shape of each part of a matrix, (out, in)."""
    rows, columns = shape
    groups = 1 if group_size == -1 else columns // group_size
    return {
        "qweight": ("I32", (columns * bits // _WORD, rows)),
        "qzeros": ("I32", (groups, rows * bits // _WORD)),
        "scales": ("F16", (groups, rows)),
        "g_idx": ("I32", (columns,)),
    }


def fits(shape: tuple[int, ...], group_size: int) -> bool:
    """Whether a matrix can be stored: whole words along both sides, whole groups in a row."""
    rows, columns = shape
    whole = group_size == -1 or (group_size > 0 and columns % group_size == 0)
    return rows % _WORD == 0 and columns % _WORD == 0 and whole


def quantize_config(
    bits: int,
    group_size: int,
    damp: float,
    act_order: bool,
    symmetric: bool,
    skipped: "Skipped | None" = None,
) -> dict[str, Any]:
    """What ``quantize_config.json`` and ``quantization_config`` hold.

    Where linear layers are left alone, GPTQModel and vLLM are told so by ``dynamic``, and optimum,
    which transformers goes through, by ``modules_in_block_to_quantize``.

    Keys are those that auto-gptq 0.7.1 and GPTQModel 7.7 both take. auto-gptq also writes
    ``is_marlin_format``, which GPTQModel refuses (``QuantizeConfig.from_quant_config``);
    without it auto-gptq assumes false.
    """
    told: dict[str, Any] = {}
    if skipped is not None:
        names: dict[str, Any] = {f"-:.*{re.escape(name)}$": {} for name in skipped.unquantized}
        told = {"dynamic": names, "modules_in_block_to_quantize": [list(skipped.quantized)]}
    return {
        "bits": bits,
        "group_size": group_size,
        "damp_percent": damp,
        "desc_act": act_order,
        "static_groups": act_order,
        "sym": symmetric,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": "model",
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        **told,
    }


def _pack_rows(values: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Rows of small numbers as rows of words, lowest bits first."""
    rows, columns = values.shape
    words = np.empty((rows, columns * bits // _WORD), np.int32)
    for start in range(0, rows, _SLAB):
        part = np.ascontiguousarray(values[start : start + _SLAB])
        split = np.unpackbits(part[..., None], axis=-1, count=bits, bitorder="little")
        packed = np.packbits(split.reshape(len(part), -1), axis=-1, bitorder="little")
        words[start : start + _SLAB] = packed.view("<i4")
    return words


def _unpack_rows(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    rows, columns = words.shape[0], words.shape[1] * _WORD // bits
    values = np.empty((rows, columns), np.uint8)
    for start in range(0, rows, _SLAB):
        part = np.ascontiguousarray(words[start : start + _SLAB], "<i4").view(np.uint8)
        split = np.unpackbits(part, axis=-1, bitorder="little").reshape(len(part), columns, bits)
        values[start : start + _SLAB] = np.packbits(split, axis=-1, bitorder="little")[..., 0]
    return values
