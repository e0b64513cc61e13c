"""Sums of squares of what goes into the matrices of a layer: what an importance matrix is of."""

import threading
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantkit.calibration.statistics import Sums


class Squares:
    """A `Watcher` that adds up squares, in the order of the chunks whoever comes first.

    Each batch is summed in float32 and the batches in float64, so that the sum's error does not
    grow with the text; their order is settled, so that the same text gives the same bits.
    """

    def __init__(self, n_matrices: Callable[[str], int]) -> None:
        """Watch; ``n_matrices`` says how many a parameter holds."""
        self._n_matrices = n_matrices
        self._lock = threading.Lock()
        # By parameter, then by expert and chunk, of which one is None.
        self._sums: dict[str, dict[tuple[int | None, int | None], NDArray[np.float64]]]
        self._sums = defaultdict(dict)

    def observe(
        self, parameter: str, expert: int | None, chunk: int | None, x: Tensor, share: float = 1.0
    ) -> None:
        """Add inputs, shape (tokens, columns)."""
        found = share * x.square().sum(0).double().cpu().numpy()
        with self._lock:
            sums = self._sums[parameter]
            key = (expert, chunk)
            if key not in sums:
                sums[key] = np.zeros(len(found) + 1)  # the last counts tokens
            sums[key][:-1] += found
            sums[key][-1] += share * len(x)

    def take(self) -> dict[str, Sums]:
        """The sums by parameter, which then begin anew."""
        taken = {}
        for parameter, sums in self._sums.items():
            total = np.zeros((self._n_matrices(parameter), len(next(iter(sums.values())))))
            for expert, chunk in sorted(sums, key=lambda key: (key[0] or 0, key[1] or 0)):
                total[expert or 0] += sums[expert, chunk]
            taken[parameter] = Sums(
                total[:, :-1].astype(np.float32), total[:, -1].round().astype(np.float32)
            )
        self._sums.clear()
        return taken
