"""Whether stored weights are numbers, as ``ggml_validate_row_data`` says, without its prints."""

import numpy as np
from numpy.typing import NDArray

from quantkit.core.tensors import FLOAT_BYTES
from quantkit.encodings.encoding import Encoding
from quantkit.encodings.widen import largest_magnitude

_INFINITE = 0x7C00  # the exponent of a half that is infinite or no number
# Where in a block its scales lie, in halves, after the structs of ggml's ``ggml-common.h``. Blocks
# of other formats have one at their beginning.
_SCALES = {
    "Q4_1": (0, 1),
    "Q5_1": (0, 1),
    "Q4_K": (0, 1),
    "Q5_K": (0, 1),
    "Q2_K": (40, 41),
    "Q3_K": (54,),
    "Q6_K": (104,),
    "TQ1_0": (26,),
    "TQ2_0": (32,),
}
# Integers, and blocks whose scales of 8 bits are all numbers.
_ALWAYS_SOUND = ("I8", "I16", "I32", "I64", "NVFP4")


def is_sound(raw: NDArray[np.uint8], encoding: Encoding) -> bool:
    """Whether every float, or the scale of every block, is finite.

    Args:
        raw: bytes of whole blocks, 1-D and contiguous.
        encoding: their format.

    """
    if encoding.name in _ALWAYS_SOUND:
        return True
    if encoding.name in FLOAT_BYTES:
        return bool(np.isfinite(largest_magnitude(raw, encoding.name)))
    if encoding.name in ("F64", "Q8_K"):
        kind = "<f8" if encoding.name == "F64" else "<f4"
        first = raw.reshape(-1, encoding.bytes)[:, : np.dtype(kind).itemsize]
        with np.errstate(over="ignore", invalid="ignore"):  # ggml looks at doubles as floats, too
            floats = np.ascontiguousarray(first).view(kind).astype(np.float32)
        return bool(np.isfinite(floats).all())
    if encoding.name == "MXFP4":  # a power of two in 8 bits, of which one pattern is not a number
        return not (raw[:: encoding.bytes] == 0xFF).any()
    halves = raw.view("<u2").reshape(-1, encoding.bytes // 2)
    if encoding.name == "IQ1_M":  # four bits of it in each of the last four
        a, b, c, d = (halves[:, -4 + n] for n in range(4))
        scale = (a >> 12) | ((b >> 8) & 0xF0) | ((c >> 4) & 0xF00) | (d & 0xF000)
        return not ((scale & _INFINITE) == _INFINITE).any()
    return all(
        not ((halves[:, at] & _INFINITE) == _INFINITE).any()
        for at in _SCALES.get(encoding.name, (0,))
    )
