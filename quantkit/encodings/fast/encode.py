"""Rows in, blocks out: ``--kernel fast``."""

import numpy as np
from numpy.typing import NDArray

from quantkit.core.version import __version__
from quantkit.encodings import ggml
from quantkit.encodings.encoding import Encoding
from quantkit.encodings.fast import (
    best_grids,
    best_iq1,
    best_iq4,
    iq1,
    iq2,
    iq3,
    iq4,
    k_minima,
    k_signed,
    legacy,
)
from quantkit.encodings.fast.best import make_scratch
from quantkit.encodings.fast.grids import Lists, make_lists
from quantkit.encodings.fast.tiles import make_tiles
from quantkit.encodings.slab import Slab

SUPERBLOCK, _BLOCK = 256, 32
_K_QUANTS = {
    "Q2_K": k_minima.encode_q2_k,
    "Q3_K": k_signed.encode_q3_k,
    "Q4_K": k_minima.encode_q4_k,
    "Q5_K": k_minima.encode_q5_k,
    "Q6_K": k_signed.encode_q6_k,
}
_IQ4 = {
    "IQ4_XS": iq4.encode_iq4_xs,
    "IQ4_NL": iq4.encode_iq4_nl,
}
_ON_GRIDS = {
    "IQ3_S": iq3.encode_iq3_s,
    "IQ3_XXS": iq3.encode_iq3_xxs,
    "IQ2_S": iq2.encode_iq2_s,
    "IQ2_XS": iq2.encode_iq2_xs,
    "IQ2_XXS": iq2.encode_iq2_xxs,
    "IQ1_S": iq1.encode_iq1_s,
    "IQ1_M": iq1.encode_iq1_m,
}
# These search only for an importance; without one ggml is as fast as memory.
_LEGACY = {
    "Q4_0": legacy.encode_q4_0,
    "Q4_1": legacy.encode_q4_1,
    "Q5_0": legacy.encode_q5_0,
    "Q5_1": legacy.encode_q5_1,
}
_KERNELS = {**_K_QUANTS, **_IQ4, **_ON_GRIDS, **_LEGACY}
_IMPROVE = {
    name: module.improve for module in (best_grids, best_iq1, best_iq4) for name in module.FORMATS
}
# ggml has no legacy search without an importance, and the others it refuses.
_WEIGHTED_ONLY = {*_LEGACY, "IQ2_XS", "IQ2_XXS", "IQ1_S"}


def encode(
    slab: Slab,
    encoding: Encoding,
    importance: NDArray[np.float32] | None,
    search: str = "ggml",
) -> NDArray[np.uint8]:
    """The bytes of a slab in a block format: those that ``ggml.encode`` gives, only sooner.

    With the search ``best`` the K-quants, and i-quants with importance, get other bytes, with less
    of the error that ggml minimizes (see ``fast.best``, ``fast.best_grids``, ``fast.best_iq1`` and
    ``fast.best_iq4``); every other format is the same.

    Formats without a kernel of ours go to ggml, and so do rows with weights so large, small or
    strange that ggml's rounding wraps around in them.

    Args:
        slab: whole rows, all finite; columns are whole blocks.
        encoding: the block format.
        importance: one weight per column, float32, or None.
        search: ``ggml`` or ``best``.

    Returns:
        Shape (rows, row bytes).

    Raises:
        OverflowError: a scale left the range of its 16 bits, as with weights near 1e30.

    """
    if not has_kernel(encoding, importance is not None):
        return ggml.encode(slab.rows, encoding, importance)
    width = _BLOCK if slab.columns % SUPERBLOCK else SUPERBLOCK
    tiles = slab.tiles(width, make_tiles)
    out = np.empty((slab.n_rows, encoding.row_bytes(slab.columns)), np.uint8)
    odd = np.empty(slab.n_rows * slab.columns // width, np.uint8)
    columns = None if importance is None else np.array(importance, np.float32)
    more: list[NDArray[np.float32] | Lists | None] = []
    if encoding.name in _LEGACY:
        means = np.empty(slab.n_rows, np.float32)
        legacy.row_means(slab.rows, means)
        more = [means]
    elif encoding.name in _K_QUANTS:
        more = [make_scratch() if search == "best" else None]
    elif encoding.name in _ON_GRIDS:
        more = [make_lists(encoding.name)]
        if columns is None:
            columns = np.empty(0, np.float32)  # one compilation serves with and without
    _KERNELS[encoding.name](tiles, columns, *more, out.reshape(-1).view(np.uint16), odd)
    strange = np.flatnonzero(odd)
    if strange.size and importance is None:  # a block does not depend on where it lies
        blocks = slab.rows.reshape(-1, width)[strange]
        out.reshape(odd.size, -1)[strange] = ggml.encode(blocks, encoding, None)
    elif strange.size:
        for row in np.unique(strange // (slab.columns // width)):
            out[row] = ggml.encode(slab.rows[row : row + 1], encoding, importance)
    if search == "best" and importance is not None:
        weights = np.array(importance, np.float32)
        improve = _IMPROVE.get(encoding.name)
        if improve is not None:
            improve(tiles, weights, encoding.name, out.reshape(odd.size, -1))
    return out


def has_kernel(encoding: Encoding, weighted: bool) -> bool:
    """Whether ``encode`` has a kernel of ours for a format, with or without importance."""
    return encoding.name in _KERNELS and (weighted or encoding.name not in _WEIGHTED_ONLY)


def version() -> str:
    """Which kernels these are."""
    return f"quantkit {__version__} with {ggml.version()}"
