"""Weighted means of matrices, rounded once to the dtype they are stored in."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantkit.encodings.widen import widen


def weighted_mean(
    raws: Sequence[NDArray[np.uint8]], weights: Sequence[float], dtype: str
) -> NDArray[np.uint8]:
    """The mean of some matrices of one dtype, by these weights, as bytes.

    The arithmetic is float32 in the order given: products, their sum, and a division by the sum of
    the weights. So does mergekit's ``linear``, but for a sum that it may fuse with its product.

    Args:
        raws: little-endian floats, 1-D, all of one length.
        weights: one for each; their sum is not 0.
        dtype: safetensors' name of what is stored.

    """
    total, sums = np.float32(0), np.zeros(0, np.float32)
    for raw, weight in zip(raws, weights, strict=True):
        product = widen(raw, dtype) * np.float32(weight)
        if sums.size:
            sums += product
        else:
            sums = product
        total += np.float32(weight)
    sums /= total
    return narrow(sums, dtype)


def narrow(values: NDArray[np.float32], dtype: str) -> NDArray[np.uint8]:
    """Float32 values rounded to ``F32``, ``F16`` or ``BF16``, ties to even, as bytes.

    What is beyond a dtype's range becomes infinite, and NaN stays NaN.
    """
    if dtype == "F32":
        return values.view(np.uint8)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint8)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    rounded[np.isnan(values)] = 0x7FC0
    return rounded.astype(np.uint16).view(np.uint8)
