"""Rows of weights to encode: ordinary, trained, and of every strange kind."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.open import open_checkpoint
from quantkit.encodings.slab import Slab

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
COLUMNS = 1024


def normal(n_rows: int, columns: int = COLUMNS, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n_rows, columns), np.float32)


def heavy_tailed(n_rows: int, columns: int = COLUMNS) -> NDArray[np.float32]:
    values = np.random.default_rng(1).standard_t(1.5, (n_rows, columns)) * 0.02
    return np.clip(values, -1e4, 1e4).astype(np.float32)


@cache
def trained() -> NDArray[np.uint16]:
    """Rows of 256 columns of tiny-mixtral, as the bfloat16 they are stored in."""
    tensors = open_checkpoint(CHECKPOINTS / "tiny-mixtral").tensors.values()
    wide = [t for t in tensors if t.dtype == "BF16" and t.shape[-1] % 256 == 0]
    parts = []
    for tensor in wide:
        with tensor.file.open("rb") as file:
            file.seek(tensor.offset)
            parts.append(np.frombuffer(file.read(2 * tensor.n_elements), np.uint16))
    return np.concatenate(parts)


def special() -> NDArray[np.float32]:
    """Rows that take every branch that ordinary weights do not."""
    ramp = np.linspace(-1, 1, COLUMNS, dtype=np.float32)
    one = np.zeros(COLUMNS, np.float32)
    one[300] = 0.7
    uneven = normal(1)[0] * np.repeat(np.float32(10) ** np.arange(0, -32, -1), COLUMNS // 32)
    rows = [
        np.zeros(COLUMNS),
        -np.zeros(COLUMNS),
        one,
        -one,
        np.full(COLUMNS, 0.3),
        np.full(COLUMNS, -0.3),
        -np.abs(normal(1)[0]),
        np.abs(normal(1)[0]),
        np.abs(ramp) + 5,  # a range far from 0
        ramp * 1e-3 - 1000,
        ramp * 1e4,
        ramp * 1e8,
        ramp * 1e30,
        ramp * 1e-7,
        ramp * 1e-16,
        ramp * 1e-30,
        ramp * 1e-41,  # denormal
        np.where(np.arange(COLUMNS) % 2, 1e-42, 0),
        uneven,  # sub-block scales that are rounded to nothing
        np.where(np.arange(COLUMNS) % 256 == 7, 50, normal(1, seed=3)[0] * 1e-3),
        np.round(ramp * 8) / 8,  # ties
        np.sign(ramp) * 1e-15,
        np.tile(np.array([1, -1], np.float32), COLUMNS // 2),
    ]
    return np.array(rows, np.float32)


def importance(columns: int, kind: str = "spread") -> NDArray[np.float32]:
    values = np.random.default_rng(2).lognormal(0, 2, columns).astype(np.float32)
    if kind == "holes":  # columns that calibration never saw
        values[::3] = 0
        values[: columns // 4] = 0
    return values


def slab_of(rows: NDArray[np.float32], dtype: str = "F32") -> Slab:
    if dtype == "BF16":
        stored = (rows.view(np.uint32) >> 16).astype(np.uint16)
    else:
        stored = rows.astype({"F32": np.float32, "F16": np.float16}[dtype])
    return Slab(stored.reshape(-1).view(np.uint8), dtype, rows.shape[1])
