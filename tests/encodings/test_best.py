"""``--search best``: the same formats with less of the error that ggml's search minimizes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from quantkit.core.errors import PlanError
from quantkit.encodings import ggml
from quantkit.encodings.encoding import encoding
from quantkit.encodings.fast.encode import encode
from quantkit.encodings.kernel import load_kernel
from quantkit.encodings.slab import Slab
from tests.encodings.rows import (
    COLUMNS,
    heavy_tailed,
    importance,
    normal,
    slab_of,
    special,
    trained,
)
from tests.encodings.weighted_error import weighted_error

K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
OTHERS = ("Q4_0", "Q5_1", "Q8_0")
SEARCHES = [(name, weighted) for name in K_QUANTS for weighted in (False, True)]


def errors(
    slab: Slab, name: str, columns: NDArray[np.float32] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per block: best's error and ggml's."""
    kind = encoding(name)
    best = encode(slab, kind, columns, "best")
    found = []
    for data in (best, ggml.encode(slab.rows, kind, columns)):
        decoded = dequantize(data, GGMLQuantizationType[name])
        assert np.isfinite(decoded).all()
        found.append(weighted_error(name, slab.rows, decoded, columns))
    return found[0], found[1]


def slab_of_kind(rows: str) -> Slab:
    if rows == "trained":
        return Slab(trained()[: 2**19].view(np.uint8), "BF16", 256)
    plain, rng = normal(512), np.random.default_rng(4)
    uneven = np.exp(rng.standard_normal(plain.shape[1], np.float32))
    made = {
        "normal": plain,
        "heavy-tailed": heavy_tailed(512),
        "positive": np.abs(plain),
        "negative": -np.abs(plain),
        "far from 0": plain + 3,
        "uniform": np.float32(2) * rng.random(plain.shape, np.float32) - 1,
        "uneven columns": plain * uneven,
    }
    return slab_of(made[rows], "BF16")


@pytest.mark.parametrize(("name", "weighted"), SEARCHES)
class TestError:
    @pytest.mark.parametrize("rows", ["normal", "heavy-tailed", "trained"])
    def test_at_most_0_995_of_that_of_ggml(self, name: str, weighted: bool, rows: str) -> None:
        slab = slab_of_kind(rows)
        best, reference = errors(slab, name, importance(slab.columns) if weighted else None)
        assert best.sum() < 0.995 * reference.sum()

    @pytest.mark.parametrize(
        "rows",
        [
            *("normal", "heavy-tailed", "trained", "positive", "negative", "far from 0"),
            *("uniform", "uneven columns"),
        ],
    )
    def test_nothing_gets_worse(self, name: str, weighted: bool, rows: str) -> None:
        """No block, but for Q3_K without importance, which does not start from ggml's solution."""
        slab = slab_of_kind(rows)
        best, reference = errors(slab, name, importance(slab.columns) if weighted else None)
        if (name, weighted) == ("Q3_K", False):
            best, reference = (e.reshape(-1, 256).sum(axis=1) for e in (best, reference))
        assert (best <= reference * (1 + 1e-5)).all()

    def test_special_rows(self, name: str, weighted: bool) -> None:
        columns = importance(COLUMNS) if weighted else None
        for row in special():
            slab = slab_of(row[np.newaxis])
            try:
                ggml.encode(slab.rows, encoding(name), columns)
            except OverflowError:
                with pytest.raises(OverflowError):
                    encode(slab, encoding(name), columns, "best")
                continue
            best, reference = errors(slab, name, columns)
            if (name, weighted) == ("Q3_K", False):
                # A straight line of weights is one of the few that ggml happens to fit better.
                assert best.sum() <= reference.sum() * 1.5
            else:
                assert (best <= reference * (1 + 1e-4)).all()

    def test_any_number_of_blocks(self, name: str, weighted: bool) -> None:
        columns = importance(768) if weighted else None
        rows = normal(40, 768)
        whole = encode(slab_of(rows), encoding(name), columns, "best")
        for first, last in ((0, 1), (1, 8), (8, 40)):
            part = encode(slab_of(rows[first:last]), encoding(name), columns, "best")
            np.testing.assert_array_equal(part, whole[first:last])


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_keep_their_bytes(name: str) -> None:
    columns = importance(COLUMNS)
    slab = slab_of(normal(20))
    np.testing.assert_array_equal(
        encode(slab, encoding(name), columns, "best"),
        ggml.encode(slab.rows, encoding(name), columns),
    )


def test_ggml_has_no_such_search() -> None:
    with pytest.raises(PlanError, match="--search best needs --kernel fast"):
        load_kernel("ggml", "best")


_DIGESTS = """
import hashlib
from tests.encodings.test_best import *
for name, weighted in (("Q4_K", False), ("IQ2_S", True)):
    slab = slab_of_kind("heavy-tailed")
    data = encode(slab, encoding(name), importance(slab.columns) if weighted else None, "best")
    print(hashlib.sha256(data).hexdigest())
"""


@pytest.mark.native
def test_the_same_bytes_on_a_processor_without_vectors(tmp_path: Path) -> None:
    def digests(**processor: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", _DIGESTS],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / str(len(processor))), **processor},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert digests() == digests(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
