"""AutoGPTQ's checkpoint format, version 1: what is stored of a linear layer, and its settings.

A linear layer of ``in`` inputs and ``out`` outputs becomes, in little-endian words of 32 bits:
``qweight`` int32 (in * bits / 32, out), levels packed along the inputs; ``qzeros`` int32 (groups,
out * bits / 32), zero points less one, packed along the outputs; ``scales`` float16 (groups, out);
``g_idx`` int32 (in), each input's group. `packing` makes them.
"""

import re
from dataclasses import dataclass
from typing import Any

PARTS = ("qweight", "qzeros", "scales", "g_idx")
WORD = 32  # bits


@dataclass(frozen=True, slots=True)
class Skipped:
    """Linear layers that are left alone, and those of a block that are not, experts aside.

    Names are ends of modules' paths.
    """

    unquantized: tuple[str, ...]
    quantized: tuple[str, ...]


def packed_shapes(
    shape: tuple[int, ...], bits: int, group_size: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The safetensors dtype and the shape of each part of a matrix, (out, in)."""
    rows, columns = shape
    groups = 1 if group_size == -1 else columns // group_size
    return {
        "qweight": ("I32", (columns * bits // WORD, rows)),
        "qzeros": ("I32", (groups, rows * bits // WORD)),
        "scales": ("F16", (groups, rows)),
        "g_idx": ("I32", (columns,)),
    }


def fits(shape: tuple[int, ...], group_size: int) -> bool:
    """Whether a matrix can be stored: whole words along both sides, whole groups in a row."""
    rows, columns = shape
    whole = group_size == -1 or (group_size > 0 and columns % group_size == 0)
    return rows % WORD == 0 and columns % WORD == 0 and whole


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
