"""What the searches for scales make small: the weighted error of encoded rows."""

import numpy as np
from numpy.typing import NDArray

_SUPERBLOCK = 256
_ONE_MEAN_SQUARE = frozenset({"Q2_K", "IQ2_XS", "IQ2_XXS"})


def weighted_error(
    name: str,
    rows: NDArray[np.float32],
    decoded: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    """The error of each block of 256 weights, by the measure of ggml's own search for a format.

    For the formats that the search ``best`` encodes otherwise. The measures are those of the
    ``quantize_row_*`` functions of ``ggml/src/ggml-quants.c``, squared differences for the most
    part. What they are multiplied by, where ``|x|`` is the magnitude of a weight:

    - with importance: importance * sqrt(s + x**2), where s is twice the mean square of the block
      (Q2_K, IQ2_XS and IQ2_XXS: once; IQ4_NL: of 32 weights); for Q6_K importance alone;
    - without, Q2_K: ``|x|``, and absolute differences instead of squared ones;
    - without, Q4_K and Q5_K: ``|x|`` + the root mean square of the sub-block;
    - without, Q3_K and Q6_K: x**2.

    Args:
        name: of the encoding.
        rows: the weights, shape (rows, columns).
        decoded: what their encoded bytes stand for, of the same shape.
        importance: one weight per column, or None.

    Returns:
        Shape (blocks,).

    """
    x = rows.reshape(-1, _SUPERBLOCK).astype(np.float64)
    off = np.abs(decoded.reshape(-1, _SUPERBLOCK) - x)
    if importance is not None:
        columns = importance.reshape(-1, _SUPERBLOCK).astype(np.float64)
        weights = np.tile(columns, (len(x) // len(columns), 1))
        if name != "Q6_K":
            parts = x.reshape(-1, 32) if name == "IQ4_NL" else x
            mean = np.mean(parts * parts, axis=1, keepdims=True)
            mean = mean * (1 if name in _ONE_MEAN_SQUARE else 2)
            weights *= np.sqrt(mean + parts * parts).reshape(x.shape)
    elif name == "Q2_K":
        return np.asarray((np.abs(x) * off).sum(axis=1))
    elif name in ("Q4_K", "Q5_K"):
        sub_blocks = x.reshape(len(x), -1, 32)
        root = np.sqrt(np.mean(sub_blocks * sub_blocks, axis=2)).repeat(32, axis=1)
        weights = root + np.abs(x)
    else:
        weights = x * x
    return np.asarray((weights * off * off).sum(axis=1))
