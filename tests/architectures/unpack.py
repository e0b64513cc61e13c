"""What the weights of a stored checkpoint are worth: numpy, and nothing of the converter.

``weights(folder)`` gives every tensor of a checkpoint by its name, dequantized from its parts, as
`Weight`. The forms are those that `forms` writes, told apart by config.json as loaders do it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Config = Mapping[str, Any]

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
DTYPES = {
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "F8_E8M0": "u1",
    "U8": "u1",
    "I8": "i1",
    "I32": "<i4",
    "I64": "<i8",
}
# Linear layers, as they are called in the models here; routers, embeddings, heads, norms and
# what joins a layer of prediction to the others stay as they are.
_LINEAR = re.compile(
    r"(_proj|_proj_with_mqa|in_proj_(qkv|z|a|b)|\.w[123]"
    r"|attn\.(indexer\.)?w(q_a|q_b|kv|o_a|o_b))\.weight$"
)
_KEPT = re.compile(r"eh_proj|weights_proj|_res_proj|vision|visual|multi_modal|mtp\.")
_PARTS = re.compile(
    r"(_scale(_inv|_2)?|_packed|_shape|_zero_point|_global_scale|input_scale"
    r"|\.([kv]_)?scale|qweight|qzeros|scales|g_idx)$"
)


class Weight(NamedTuple):
    """A tensor's values.

    Attributes:
        values: float32, in PyTorch's shape. Of NVFP4 they lack the factor ``scale``.
        form: "float", or "mxfp4" or "nvfp4", whose bits a GGUF can hold as they are.
        scale: the factor of the whole tensor (NVFP4).
        input_scale: that of what goes into it (NVFP4).
        quantized: whether it was stored in parts.

    """

    values: Array
    form: str = "float"
    scale: float = 1.0
    input_scale: float = 1.0
    quantized: bool = True


def is_quantized(name: str, quantization: Config) -> bool:
    """Whether a weight of this name is stored in parts where the config has this to say."""
    if not _LINEAR.search(name) or _KEPT.search(name):
        return False
    method = quantization["quant_method"]
    if method == "modelopt":
        return layer_algorithm(name, quantization) is not None
    if "mxfp4" in quantization.get("format", ""):
        return ".experts." in name
    # Qwen3.5's are too few rows for blocks.
    return method != "fp8" or not re.search(r"in_proj_[ab]", name)


def layer_algorithm(name: str, quantization: Config) -> str | None:
    """ModelOpt's name for how a weight is stored."""
    layers = quantization.get("quantized_layers")
    if layers is None:
        algorithm: str = quantization["quant_algo"]
        return algorithm
    entry = layers.get(name.removesuffix(".weight"))
    return None if entry is None else entry["quant_algo"]


def quantization_of(folder: Path) -> Config:
    """What a checkpoint says of its stored form: in config.json, or in ModelOpt's older file."""
    config = json.loads((folder / "config.json").read_text())
    quantization: dict[str, Any] = config.get("quantization_config", {})
    older = folder / "hf_quant_config.json"
    if not quantization and older.exists():
        quantization = {"quant_method": "modelopt"} | json.loads(older.read_text())["quantization"]
    return quantization


def weights(folder: Path) -> dict[str, Weight]:
    """Every tensor of a checkpoint, by the name that it had before it was stored in parts."""
    tensors = read_safetensors(folder / "model.safetensors")
    quantization = quantization_of(folder)
    found: dict[str, Weight] = {}
    for name, values in tensors.items():
        base = re.sub(r"(weight_packed|qweight)$", "weight", name)
        if quantization and is_quantized(base, quantization):
            found[base] = dequantized(base, tensors, quantization)
        elif not quantization or not _PARTS.search(name):
            found[name] = Weight(values.astype(np.float32), quantized=False)
    return found


def dequantized(name: str, parts: Mapping[str, Array], quantization: Config) -> Weight:
    """One weight of its parts."""
    method = quantization["quant_method"]
    module = name.removesuffix("weight")
    if method == "gptq":
        return Weight(gptq(module, parts, quantization["bits"]))
    if method == "bitnet":
        return Weight(bitnet(parts[name]) / parts[f"{name}_scale"])
    if f"{name}_scale_2" in parts:
        scale = float(parts[f"{name}_scale_2"])
        incoming = float(parts.get(f"{module}input_scale", np.float32(1)))
        return Weight(fp4(parts[name], parts[f"{name}_scale"]), "nvfp4", scale, incoming)
    if f"{name}_global_scale" in parts:
        scale = float(np.float32(1) / parts[f"{name}_global_scale"].item())
        incoming = float(np.float32(1) / parts[f"{module}input_global_scale"].item())
        return Weight(
            fp4(parts[f"{name}_packed"], parts[f"{name}_scale"]), "nvfp4", scale, incoming
        )
    if f"{name}_shape" in parts:
        (group,) = quantization["config_groups"].values()
        return Weight(packed_integers(name, parts, group["weights"]))
    if f"{module}scale" in parts:
        powers = np.exp2(parts[f"{module}scale"].astype(np.float32) - 127)
        if parts[name].dtype == np.int8:
            return Weight(fp4(parts[name].view(np.uint8), powers), "mxfp4")
        return Weight(parts[name] * spread(powers, parts[name].shape))
    packed = parts[f"{name}_packed" if f"{name}_packed" in parts else name]
    if packed.dtype == np.uint8:
        powers = np.exp2(parts[f"{name}_scale"].astype(np.float32) - 127)
        return Weight(fp4(packed, powers), "mxfp4")
    by_value = parts[f"{name}_scale_inv" if f"{name}_scale_inv" in parts else f"{name}_scale"]
    if name.endswith("qkv_proj.weight"):  # a quarter for each of four devices
        quarters = zip(np.split(packed, 4), np.split(by_value, 4), strict=True)
        return Weight(np.concatenate([part * spread(by, part.shape) for part, by in quarters]))
    return Weight(packed.astype(np.float32) * spread(by_value, packed.shape))


def spread(scale: Array, shape: tuple[int, ...]) -> Array:
    """A scale for every value: of one for all, for each row, or for each block of 128 x 128."""
    scale = scale.astype(np.float32)
    if scale.ndim < 2 or scale.shape == (shape[0], 1):
        return scale
    return scale.repeat(128, 0).repeat(128, 1)[: shape[0], : shape[1]]


def fp4(packed: Array, scale: Array) -> Array:
    """Values of bytes that hold two, the first in the low half, times a scale for each group."""
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
    values = np.array(E2M1, np.float32)[codes]
    return values * scale.repeat(values.shape[1] // scale.shape[1], 1)


def packed_integers(name: str, parts: Mapping[str, Array], settings: Config) -> Array:
    rows, columns = parts[f"{name}_shape"]
    bits, scale = settings["num_bits"], parts[f"{name}_scale"]
    values = unsigned(parts[f"{name}_packed"], bits)[:, :columns].astype(np.float32)
    zero: Array = np.full_like(scale, 1 << (bits - 1))
    if (stored := parts.get(f"{name}_zero_point")) is not None:
        zero = unsigned(stored.T, bits).T[:rows].astype(np.float32)
    size = settings["group_size"]
    return (values - zero.repeat(size, 1)) * scale.repeat(size, 1)


def gptq(module: str, parts: Mapping[str, Array], bits: int) -> Array:
    values = unsigned(parts[f"{module}qweight"].T, bits).T.astype(np.float32)
    zeros = unsigned(parts[f"{module}qzeros"], bits).astype(np.float32) + 1
    scales, group = parts[f"{module}scales"].astype(np.float32), parts[f"{module}g_idx"]
    return (scales[group] * (values - zeros[group])).T


def bitnet(packed: Array) -> Array:
    quarters = [(packed >> (2 * i)) & 3 for i in range(4)]
    return np.concatenate(quarters).astype(np.float32) - 1


def unsigned(words: Array, bits: int) -> Array:
    """The numbers in words of 32 bits along each row, the first in the lowest bits."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    values = np.ascontiguousarray(words).view(np.uint32)[..., None] >> shifts
    return (values & ((1 << bits) - 1)).reshape(len(words), -1)


def read_safetensors(file: Path) -> dict[str, Array]:
    """The tensors of a file, in its order; those of 8 and 16 bits that are numbers as float32."""
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        bits = np.frombuffer(raw[start + begin : start + end], DTYPES[entry["dtype"]])
        if entry["dtype"] == "BF16":
            bits = (bits.astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] == "F8_E4M3":
            bits = E4M3[bits]
        tensors[name] = bits.reshape(entry["shape"])
    return tensors


def _e4m3() -> Array:
    """The value of every byte: a sign, four bits of exponent (bias 7), three of mantissa."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, (byte & 7) / 8
    values = np.where(exponent > 0, (1 + mantissa) * 2.0 ** (exponent - 7), mantissa * 2.0**-6)
    values[(byte & 127) == 127] = np.nan
    return np.where(byte < 128, values, -values).astype(np.float32)


E4M3 = _e4m3()
