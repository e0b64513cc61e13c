"""Weights in the stored forms that publishers use, written as their tools write them.

`store` takes the tensors of a checkpoint in bfloat16 and what its config.json is to say under
``quantization_config``, and gives the tensors that such a checkpoint holds. What is stored for a
weight is a rounding of it that is good enough for a test: no tool's choice of scales is followed,
but names, shapes, dtypes and the order of bits are theirs (compressed-tensors 0.20, AutoGPTQ,
ModelOpt, transformers' BitNet). `unpack` reads it back, without PyTorch.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from tests.architectures.unpack import E2M1, is_quantized, layer_algorithm

Tensors = dict[str, Any]
FP8 = torch.float8_e4m3fn
E8M0 = torch.float8_e8m0fnu
# What DeepSeek-V4 holds in float32.
_WIDE = re.compile(r"hc_|\.ape$|attn_sink|gate\.bias")
FP8_MOST = 448.0
FP4_MOST = 6.0


def store(tensors: Tensors, quantization: Mapping[str, Any]) -> Tensors:
    """The tensors with every weight that is to be quantized replaced by its parts, in order."""
    stored: Tensors = {}
    for name, weights in tensors.items():
        if weights.ndim == 2 and is_quantized(name, quantization):
            stored |= parts(name, weights.float(), quantization)
        elif name.endswith("tid2eid"):
            generator = torch.Generator().manual_seed(len(weights))
            stored[name] = torch.randint(0, 4, weights.shape, generator=generator)
        elif _WIDE.search(name) and quantization.get("scale_fmt") == "ue8m0":
            stored[name] = weights.float()
        else:
            stored[name] = weights
    return stored


def parts(name: str, weights: Any, quantization: Mapping[str, Any]) -> Tensors:
    """What is stored for one weight, ``NAME.weight``, by the method that the config names."""
    method = quantization["quant_method"]
    if method == "fp8":
        if quantization.get("scale_fmt") == "ue8m0":
            return deepseek_v4(name, weights)
        if name.endswith("qkv_proj.weight"):
            return fp8_ranks(name, weights, quantization)
        if quantization.get("store_dtype") == "mxfp4" and ".experts." in name:
            packed, scale = mxfp4(weights)
            return {name: packed, f"{name}_scale": scale}
        return fp8_blocks(name, weights, quantization)
    if method == "modelopt":
        return modelopt(name, weights, layer_algorithm(name, quantization))
    if method == "gptq":
        return gptq(name, weights, quantization)
    if method == "awq":
        return awq(name, weights, quantization["group_size"])
    if method == "bitnet":
        return bitnet(name, weights)
    return compressed(name, weights, quantization)


def fp8_blocks(name: str, weights: Any, quantization: Mapping[str, Any]) -> Tensors:
    """DeepSeek's: a scale for each block, the last ones of which may be cut."""
    rows, columns = quantization["weight_block_size"]
    scale = block_most(weights, rows, columns) / FP8_MOST
    values = (weights / spread(scale, rows, columns, weights.shape)).to(FP8)
    return {name: values, f"{name}_scale_inv": scale}


def fp8_ranks(name: str, weights: Any, quantization: Mapping[str, Any]) -> Tensors:
    """MiMo's queries, keys and values: a quarter for each of four devices, in its own blocks."""
    each = [fp8_blocks(name, quarter, quantization) for quarter in weights.chunk(4)]
    return {part: torch.cat([parts[part] for parts in each]) for part in each[0]}


def deepseek_v4(name: str, weights: Any) -> Tensors:
    """DeepSeek-V4's: scales are powers of two, and what has one is named after it."""
    scale_name = name.removesuffix("weight") + "scale"
    if ".experts." in name:
        packed, exponents = mxfp4(weights)
        return {name: packed.view(torch.int8), scale_name: exponents.view(E8M0)}
    exponent = (block_most(weights, 128, 128) / FP8_MOST).log2().ceil()
    values = (weights / spread(exponent.exp2(), 128, 128, weights.shape)).to(FP8)
    return {name: values, scale_name: (exponent + 127).to(torch.uint8).view(E8M0)}


def compressed(name: str, weights: Any, quantization: Mapping[str, Any]) -> Tensors:
    """What compressed-tensors calls by its ``format``."""
    form = quantization["format"]
    (group,) = quantization["config_groups"].values()
    settings = group["weights"]
    if form == "nvfp4-pack-quantized":
        packed, scale, scale_2 = nvfp4(weights)
        return {
            f"{name}_packed": packed,
            f"{name}_scale": scale,
            f"{name}_global_scale": (1 / scale_2).reshape(1),
            name.removesuffix("weight") + "input_global_scale": 1 / input_scale(name),
        }
    if form == "mxfp4-pack-quantized":
        packed, scale = mxfp4(weights)
        return {f"{name}_packed": packed, f"{name}_scale": scale}
    if form == "pack-quantized":
        return packed_integers(name, weights, settings)
    most = FP8_MOST if form == "float-quantized" else 127.0
    if settings["strategy"] == "block":
        rows, columns = settings["block_structure"]
        scale = (block_most(weights, rows, columns) / most).to(torch.bfloat16)
        by_value = spread(scale.float(), rows, columns, weights.shape)
    elif settings["strategy"] == "tensor":
        scale = (weights.abs().amax() / most).reshape(1).to(torch.bfloat16)
        by_value = scale.float()
    else:
        scale = (weights.abs().amax(1, keepdim=True) / most).to(torch.bfloat16)
        by_value = scale.float()
    values = (weights / by_value).clamp(-most, most)
    kept = values.to(FP8) if form == "float-quantized" else values.round().to(torch.int8)
    return {name: kept, f"{name}_scale": scale}


def packed_integers(name: str, weights: Any, settings: Mapping[str, Any]) -> Tensors:
    """Integers in words of 32 bits, each raised by half of its range, and so is the zero point."""
    bits, size = settings["num_bits"], settings["group_size"]
    half = 1 << (bits - 1)
    groups = weights.reshape(len(weights), -1, size)
    if settings["symmetric"]:
        scale = (groups.abs().amax(2) / (half - 1)).to(torch.bfloat16)
        zero = torch.zeros(scale.shape)
    else:
        low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
        scale = ((high - low) / (2 * half - 1)).to(torch.bfloat16)
        zero = (-half - low / scale.float()).round().clamp(-half, half - 1)
    values = (groups / scale.float()[..., None] + zero[..., None]).round().clamp(-half, half - 1)
    kept = {
        f"{name}_packed": words(values.reshape(weights.shape) + half, bits),
        f"{name}_scale": scale,
        f"{name}_shape": torch.tensor(weights.shape),
    }
    if not settings["symmetric"]:
        kept[f"{name}_zero_point"] = words((zero + half).T, bits).T.contiguous()
    return kept


def modelopt(name: str, weights: Any, algorithm: str | None) -> Tensors:
    """ModelOpt's: FP8 with one scale, or NVFP4; each with a scale for what goes in."""
    module = name.removesuffix("weight")
    if algorithm == "FP8":
        scale = weights.abs().amax() / FP8_MOST
        kept = {name: (weights / scale).to(FP8), f"{name}_scale": scale}
    else:
        packed, scale, scale_2 = nvfp4(weights)
        kept = {name: packed, f"{name}_scale": scale, f"{name}_scale_2": scale_2}
    if algorithm != "W4A16_NVFP4":
        kept[f"{module}input_scale"] = input_scale(name).reshape(())
    for part in ("k", "v"):
        if name.endswith(f"{part}_proj.weight"):
            kept[f"{module}{part}_scale"] = torch.tensor(0.5)
    return kept


def input_scale(name: str) -> Any:
    """A scale for what goes into a layer, which differs from layer to layer."""
    return torch.tensor([0.02 * (1 + len(name) % 7 / 8)])


def gptq(name: str, weights: Any, quantization: Mapping[str, Any]) -> Tensors:
    """AutoGPTQ's: transposed, words along what goes in, zero points one too low."""
    bits, size = quantization["bits"], quantization["group_size"]
    most = (1 << bits) - 1
    columns = weights.shape[1]
    group = torch.arange(columns) // size
    if quantization["desc_act"]:
        group = group[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
    n_groups = columns // size
    low = torch.stack([weights[:, group == i].amin(1) for i in range(n_groups)]).clamp(max=0)
    high = torch.stack([weights[:, group == i].amax(1) for i in range(n_groups)]).clamp(min=0)
    if quantization["sym"]:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / most).half()
    zeros = (-low / scales.float()).round().clamp(1, most)
    if quantization["sym"]:
        zeros = torch.full_like(zeros, (most + 1) // 2)
    values = (weights.T / scales.float()[group] + zeros[group]).round().clamp(0, most)
    module = name.removesuffix("weight")
    return {
        f"{module}qweight": words(values.T, bits).T.contiguous(),
        f"{module}qzeros": words(zeros - 1, bits),
        f"{module}scales": scales,
        f"{module}g_idx": group.int(),
    }


def awq(name: str, weights: Any, size: int) -> Tensors:
    """AutoAWQ's: transposed, words along what comes out, even places before odd ones."""
    groups = weights.reshape(len(weights), -1, size)
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    values = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 15)
    order = [8 * i + j for i in range(len(weights) // 8) for j in (0, 2, 4, 6, 1, 3, 5, 7)]
    module = name.removesuffix("weight")
    return {
        f"{module}qweight": words(values.reshape(weights.shape)[order].T, 4),
        f"{module}qzeros": words(zeros[order].T, 4),
        f"{module}scales": scales.T.contiguous(),
    }


def bitnet(name: str, weights: Any) -> Tensors:
    """-1, 0 and 1, four in a byte, a quarter of all rows apart; the scale is an inverse."""
    scale = 1 / weights.abs().mean()
    codes = ((weights * scale).round().clamp(-1, 1) + 1).to(torch.uint8)
    quarters = codes.chunk(4)
    packed = sum(quarter << (2 * i) for i, quarter in enumerate(quarters))
    return {name: packed, f"{name}_scale": scale.reshape(1).to(torch.bfloat16)}


def nvfp4(weights: Any) -> tuple[Any, Any, Any]:
    """Bytes of two values, a scale in FP8 for every 16, and one in float32 for all of them."""
    groups = weights.reshape(len(weights), -1, 16)
    scale_2 = weights.abs().amax() / (FP4_MOST * FP8_MOST)
    scale = (groups.abs().amax(2) / FP4_MOST / scale_2).clamp(2**-6, FP8_MOST).to(FP8)
    by_value = scale.float()[..., None] * scale_2
    return fp4(groups / by_value).reshape(len(weights), -1), scale, scale_2


def mxfp4(weights: Any) -> tuple[Any, Any]:
    """Bytes of two values, and the exponent of a power of two for every 32."""
    groups = weights.reshape(len(weights), -1, 32)
    exponent = (groups.abs().amax(2).clamp(min=2**-20) / FP4_MOST).log2().ceil()
    packed = fp4(groups / exponent.exp2()[..., None]).reshape(len(weights), -1)
    return packed, (exponent + 127).to(torch.uint8)


def fp4(values: Any) -> Any:
    """Codes of the nearest values, two in a byte, the first in the low half."""
    table = torch.tensor(E2M1[:8])
    codes = (values.abs()[..., None] - table).abs().argmin(-1).to(torch.uint8)
    codes |= (values < 0).to(torch.uint8) << 3
    return codes[..., ::2] | codes[..., 1::2] << 4


def words(values: Any, bits: int) -> Any:
    """Whole numbers in words of 32 bits along each row, the first in the lowest bits."""
    in_word = 32 // bits
    padded = torch.nn.functional.pad(values.long(), (0, -values.shape[1] % in_word))
    shifts = torch.arange(0, 32, bits)
    unsigned = (padded.reshape(len(values), -1, in_word) << shifts).sum(-1)
    return torch.where(unsigned < 1 << 31, unsigned, unsigned - (1 << 32)).int()


def block_most(weights: Any, rows: int, columns: int) -> Any:
    """The largest magnitude in each block."""
    padded = torch.nn.functional.pad(
        weights.abs(), (0, -weights.shape[1] % columns, 0, -weights.shape[0] % rows)
    )
    return padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns).amax(
        (1, 3)
    )


def spread(scale: Any, rows: int, columns: int, shape: tuple[int, int]) -> Any:
    """The scale of every value, of one for each block."""
    wide = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return wide[: shape[0], : shape[1]]
