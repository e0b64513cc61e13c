"""Twenty million weights of each kind in every i-quant on a grid; by hand, `pytest -m search`."""

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.encodings.slab import Slab
from tests.encodings.rows import importance, trained
from tests.encodings.test_fast import KERNELS, ON_GRIDS, assert_same

SLAB = 2**20
SLABS = 20


def stored(rows: str, rng: np.random.Generator) -> NDArray[np.uint16]:
    if rows == "trained":  # 7 million weights: a factor for each row makes others of them
        all_rows = trained().reshape(-1, 256)
        chosen = all_rows[rng.integers(0, len(all_rows), SLAB // 256)].astype(np.uint32) << 16
        values = chosen.view(np.float32) * rng.uniform(0.5, 2, (len(chosen), 1)).astype(np.float32)
    elif rows == "heavy-tailed":
        values = np.clip(rng.standard_t(2, SLAB), -1e4, 1e4).astype(np.float32)
    else:
        values = rng.standard_normal(SLAB, np.float32)
    return (values.reshape(-1).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.search
@pytest.mark.parametrize("rows", ["normal", "heavy-tailed", "trained"])
@pytest.mark.parametrize(("name", "weighted"), [k for k in KERNELS if k[0] in ON_GRIDS])
def test_twenty_million_weights(name: str, weighted: bool, rows: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(SLABS):
        columns = importance(256) if weighted else None
        assert_same(Slab(stored(rows, rng).view(np.uint8), "BF16", 256), name, columns)
