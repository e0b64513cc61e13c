"""Scales of weights in eight bits or less, without which they are numbers of no meaning."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.checkpoint.checkpoint import StoredReader
from quantkit.core.errors import CheckpointError
from quantkit.core.printable import quoted
from quantkit.core.tensors import SourceTensor

_SCALED = ("F8_E4M3", "F8_E5M2", "I8", "U8")
_ENDINGS = (".weight", ".weight_packed")
# What scales something else: inputs, the cache of keys and values.
_OF_OTHERS = ("input_", "activation_", "qscale_act", "k_", "v_", "q_", "prob_", "output_")
# The scale of NVFP4's scales, as ModelOpt and compressed-tensors call it.
_SECOND = ("weight_scale_2", "weight_global_scale")
_INVERSE = "_scale_inv"
# Of GPTQ: which scale each input has. A model's longest has some hundred thousand bytes.
_GROUPS, _MOST_BYTES = ".g_idx", 2**24


def require_scales(
    config: Mapping[str, Any], tensors: Mapping[str, SourceTensor], path: Path
) -> None:
    """Check that weights of one dtype all have scales if one has, as many as there are blocks.

    The converter goes from scale to weight: a weight without is taken as it is, several hundred
    times too large; a second scale that lacks is taken for 1; and of more scales than blocks it
    takes the first.

    Raises:
        CheckpointError: they are not so.

    """
    kinds = _kinds(tensors)
    for dtype in _SCALED:
        names = [n for n, t in tensors.items() if t.dtype == dtype and _is_matrix(n, t)]
        _require(names, lambda name: bool(kinds[_module(name)]), "scale", dtype, path)
        for second in _SECOND:
            _require(names, lambda name, k=second: k in kinds[_module(name)], second, dtype, path)
    _require_blocks(config, tensors, path)


def require_groups(tensors: Mapping[str, SourceTensor], read: StoredReader, path: Path) -> None:
    """Check that the groups that GPTQ's ``g_idx`` name are there.

    The converter takes a negative one for one from the end, and fails of a larger one when it
    computes the matrix, which may be hours after a build began.

    Raises:
        CheckpointError: they are not.

    """
    for name, groups in tensors.items():
        scales = tensors.get(f"{name.removesuffix(_GROUPS)}.scales")
        if not name.endswith(_GROUPS) or groups.dtype != "I32" or groups.n_bytes > _MOST_BYTES:
            continue
        if scales is None or not scales.shape or len(groups.shape) != 1:
            continue  # which the converter says
        named = np.asarray(read(name, 0, groups.shape[0])).view("<i4")
        if named.size and not 0 <= named.min() <= named.max() < scales.shape[0]:
            raise CheckpointError(
                f"{quoted(name)} of {path} names groups outside its "
                f"{scales.shape[0]:,}; download the checkpoint again."
            )


def _require(names: list[str], has: Any, what: str, dtype: str, path: Path) -> None:
    lacking = [name for name in names if not has(name)]
    if lacking and len(lacking) < len(names):
        raise CheckpointError(
            f"{path} has no {what} of {quoted(lacking[0])}, which is stored as {dtype} like "
            "others that have one; download the checkpoint again."
        )


def _require_blocks(
    config: Mapping[str, Any], tensors: Mapping[str, SourceTensor], path: Path
) -> None:
    quantization = config.get("quantization_config")
    block = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
    if not isinstance(block, list) or not all(isinstance(n, int) and n > 0 for n in block):
        return
    for name, scale in tensors.items():
        weight = tensors.get(name.removesuffix(_INVERSE))
        if weight is None or weight is scale or len(weight.shape) != len(scale.shape):
            continue
        last = weight.shape[-len(block) :]
        blocks = tuple(-(-n // size) for n, size in zip(last, block, strict=False))
        if set(scale.shape) != {1} and scale.shape[-len(block) :] != blocks:
            raise CheckpointError(
                f"{path} has scales of the shape {list(scale.shape)} for {quoted(weight.name)} of "
                f"the shape {list(weight.shape)}, which is not what the weight_block_size "
                f"{block} of its config.json says; copy config.json and weights of one model."
            )


def _is_matrix(name: str, tensor: SourceTensor) -> bool:
    return len(tensor.shape) > 1 and name.endswith(_ENDINGS)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _kinds(names: Collection[str]) -> dict[str, set[str]]:
    """What scales of its weight each module has."""
    found = defaultdict[str, set[str]](set)
    for name in names:
        last = name.rpartition(".")[2]
        if "scale" in last and not last.startswith(_OF_OTHERS):
            found[_module(name)].add(last)
    return found
