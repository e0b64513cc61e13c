"""What the K-quants share: blocks of 256 weights, working memory, and the packing of levels."""

from collections import namedtuple

import numpy as np

from quantkit.encodings.fast.jit import inlined
from quantkit.encodings.fast.simd import LANES, i32, load, to_int
from quantkit.encodings.fast.tiles import importance_tile, store_half

WIDTH = 256


_MOST_SUBBLOCKS = 16


# Working memory of one call: tiles of what its name says.
Room = namedtuple(
    "Room",
    "levels weight importance scales mins inverses lows sums scale_levels min_levels halves flags",
)


@inlined
def make_room():
    """Working memory of one call."""
    per_block = np.empty((7, _MOST_SUBBLOCKS * LANES), np.float32)
    return Room(
        np.empty(WIDTH * LANES, np.float32),
        np.empty(WIDTH * LANES, np.float32),
        np.empty(WIDTH * LANES, np.float32),
        per_block[0],
        per_block[1],
        per_block[2],
        per_block[3],
        per_block[4],
        per_block[5],
        per_block[6],
        np.empty(WIDTH // 2 * LANES, np.int32),
        np.empty(LANES, np.int32),
    )


@inlined
def next_tile(tiles, importance, group, room):
    """The weights of a group of blocks; their importance goes into the room."""
    if importance is not None:
        importance_tile(importance, group, WIDTH, room.importance)
    return tiles[group]


@inlined
def level_at(room, index):
    """The level of a weight, as an integer."""
    return to_int(load(room.levels, index * LANES))


@inlined
def scale_level(room, j):
    """The multiple that is a sub-block's scale, as an integer."""
    return to_int(load(room.scale_levels, j * LANES))


@inlined
def pair_of(low, high):
    """Two bytes as a 16-bit half."""
    return low | (high << i32(8))


@inlined
def pack_two_bits(room, first_half):
    """Levels of two bits: byte ``l`` of each 128 weights holds those at l, l+32, l+64 and l+96."""
    for part in range(2):
        for pair in range(16):
            half = i32(0)
            for byte in range(2):
                for k in range(4):
                    level = level_at(room, 128 * part + 32 * k + 2 * pair + byte)
                    half = half | ((level & i32(3)) << i32(2 * k + 8 * byte))
            store_half(room.halves, first_half + 16 * part + pair, half)


@inlined
def pack_high_bit(room, bit, first_half):
    """One bit of each level: bit ``k`` of byte ``l`` is that of the weight at 32 * k + l."""
    for pair in range(16):
        half = i32(0)
        for byte in range(2):
            for k in range(8):
                high = (level_at(room, 32 * k + 2 * pair + byte) >> i32(bit)) & i32(1)
                half = half | (high << i32(k + 8 * byte))
        store_half(room.halves, first_half + pair, half)
