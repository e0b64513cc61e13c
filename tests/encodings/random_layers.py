"""Random linear layers and their inputs' second moments: numpy only, the same on every machine."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNT = 20


@dataclass(frozen=True)
class Layer:
    """A weight (rows, columns), E[x x^T] of its inputs, and how to quantize it."""

    weight: NDArray[np.float32]
    moment: NDArray[np.float32]
    bits: int
    group_size: int
    symmetric: bool
    act_order: bool

    @property
    def settings(self) -> dict[str, Any]:
        names = ("bits", "group_size", "symmetric", "act_order")
        return {name: getattr(self, name) for name in names}


def random_layers() -> Iterator[Layer]:
    """Layers of different sizes and settings; inputs are correlated, a few of them strong."""
    for seed in range(COUNT):
        rng = np.random.default_rng(seed)
        rows, columns = int(rng.choice([64, 96, 160])), int(rng.choice([128, 256, 384]))
        weight = (rng.standard_normal((rows, columns)) * 0.05).astype(np.float32)
        mixing = rng.standard_normal((columns // 3, columns)) / np.sqrt(columns)
        strength = np.exp(rng.standard_normal(columns) * 0.7)
        inputs = rng.standard_normal((1024, columns // 3)) @ mixing
        inputs = (inputs + 0.3 * rng.standard_normal((1024, columns))) * strength
        moment = (inputs.T @ inputs / len(inputs)).astype(np.float32)
        yield Layer(
            weight,
            moment,
            bits=(2, 3, 4, 8)[seed % 4],
            group_size=(128, 32, -1, 64, 128)[seed % 5],
            symmetric=seed % 3 != 0,
            act_order=seed % 2 == 1,
        )


def output_error(
    weight: NDArray[np.float32], rounded: NDArray[np.float32], moment: NDArray[np.float32]
) -> float:
    change = rounded.astype(np.float64) - weight
    return float(((change @ moment.astype(np.float64)) * change).sum())
