"""Between rows in memory and tiles of vectors: weights in, blocks out.

A tile holds ``LANES`` blocks of ``width`` weights side by side: weight ``i`` of block ``lane`` lies
at ``i * LANES + lane``. The last tile of a slab repeats its last block in the lanes left over.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.core.tensors import FLOAT_BYTES
from quantkit.encodings.fast.jit import compiled, inlined
from quantkit.encodings.fast.simd import LANES, NARROW, i32, select, store, transpose


def make_tiles(raw: NDArray[np.uint8], dtype: str, width: int) -> NDArray[np.float32]:
    """Widen stored floats and sort them into tiles.

    Args:
        raw: bytes of ``F32``, ``F16`` or ``BF16``, 1-D; a whole number of blocks.
        dtype: which.
        width: weights per block.

    Returns:
        Shape (tiles, width * LANES).

    """
    n_blocks = raw.size // FLOAT_BYTES[dtype] // width
    tiles = np.empty((-(-n_blocks // LANES), width * LANES), np.float32)
    if dtype == "F32":
        _tile_bits(raw.view(np.uint32), tiles.view(np.int32), width, n_blocks, np.uint32(0))
    elif dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        _tile_bits(raw.view(np.uint16), tiles.view(np.int32), width, n_blocks, np.uint32(16))
    else:
        floats = raw.view(np.float16).astype(np.float32).view(np.uint32)
        _tile_bits(floats, tiles.view(np.int32), width, n_blocks, np.uint32(0))
    return tiles


@compiled
def _tile_bits(bits: Any, tiles: Any, width: int, n_blocks: int, shift: Any) -> None:
    rows = np.empty(LANES * width, np.int32)
    for group in range(tiles.shape[0]):
        for lane in range(LANES):
            start = np.uintp(min(group * LANES + lane, n_blocks - 1) * width)
            row = np.uintp(lane * width)
            for i in range(np.uintp(width)):
                rows[row + i] = np.uint32(bits[start + i]) << shift
        _tile(rows, width, tiles[group])


@inlined
def _tile(rows, width, tile):
    for lane in range(0, LANES, NARROW):
        for i in range(0, width, NARROW):
            transpose(rows, lane * width + i, width, tile, i * LANES + lane, LANES)


@inlined
def importance_tile(importance, group, width, tile):
    """The importance of each weight of a group: that of its column."""
    per_row = importance.size // width
    rows = np.empty(LANES * width, np.float32)
    for lane in range(LANES):
        start = np.uintp((group * LANES + lane) % per_row * width)
        row = np.uintp(lane * width)
        for i in range(np.uintp(width)):
            rows[row + i] = importance[start + i]
    _tile(rows, width, tile)


@inlined
def write_blocks(halves, n_halves, group, odd, out, odd_blocks, flags):
    """Write the blocks of a group, given as 16-bit halves one after the other, and who is odd."""
    store(flags, 0, select(odd, i32(1), i32(0)))
    first = group * LANES
    for lane in range(min(LANES, odd_blocks.size - first)):
        start = (first + lane) * n_halves
        for i in range(n_halves):
            out[start + i] = halves[i * LANES + lane]
        odd_blocks[first + lane] = flags[lane]


@inlined
def store_half(halves, index, value):
    """Set the 16-bit half ``index`` of each block."""
    store(halves, index * LANES, value)
