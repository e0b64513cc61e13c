"""Stored floats to float32, and the check that they are finite."""

import numpy as np
from numpy.typing import NDArray

# Per dtype: the numpy type its bits are read as, and the bits at or above which (sign cleared)
# the value is infinite or NaN.
_BITS = {
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}


def widen(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """The float32 values of little-endian ``F32``, ``F16`` or ``BF16`` bytes; exact.

    Args:
        raw: bytes, 1-D and contiguous.
        dtype: the safetensors name of what they hold.

    """
    if dtype == "F32":
        return raw.view(np.float32)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    # A bfloat16 is the upper half of a float32.
    bits = raw.view(np.uint16).astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def largest_magnitude(raw: NDArray[np.uint8], dtype: str) -> float:
    """The largest magnitude among the stored floats; not finite if any of them is not."""
    kind, limit = _BITS[dtype]
    if not raw.size:
        return 0.0
    bits = raw.view(kind)
    # As integers, bits are in the order of magnitudes on either side of the sign.
    sign_cleared = limit | (limit - 1)
    signed = bits.view(np.dtype(kind).str.replace("u", "i"))
    peak = max(int(signed.max()), int(bits.max()) & sign_cleared if signed.min() < 0 else 0)
    return float(widen(np.array([peak], kind).view(np.uint8), dtype)[0])


def first_nonfinite(raw: NDArray[np.uint8], dtype: str) -> int:
    """The index of the first NaN or infinity among the stored floats, of which one must be."""
    kind, limit = _BITS[dtype]
    return int(np.argmax((raw.view(kind) & kind(limit | (limit - 1))) >= limit))
