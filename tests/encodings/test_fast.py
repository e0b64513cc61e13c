"""Our own kernels against ggml's: the same bytes, whatever the weights and the processor."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.encodings import ggml
from quantkit.encodings.encoding import encoding
from quantkit.encodings.fast.encode import encode, has_kernel
from quantkit.encodings.fast.iq4 import THRESHOLDS, VALUES
from quantkit.encodings.fast.prepare import shares
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

K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ4_NL")
LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
ON_GRIDS = ("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M")
WEIGHTED_ONLY = (*LEGACY, "IQ2_XS", "IQ2_XXS", "IQ1_S")
KERNELS = [
    (name, weighted)
    for name in (*K_QUANTS, *ON_GRIDS, *LEGACY)
    for weighted in (False, True)
    if weighted or name not in WEIGHTED_ONLY
]


def n_rows(name: str) -> int:
    """Enough for every branch; ggml takes a second for a few million weights on a grid."""
    return 64 if name in ON_GRIDS else 500


def assert_same(slab: Slab, name: str, columns: NDArray[np.float32] | None) -> None:
    kind = encoding(name)
    try:
        expected = ggml.encode(slab.rows, kind, columns)
    except OverflowError:
        with pytest.raises(OverflowError):
            encode(slab, kind, columns)
        return
    np.testing.assert_array_equal(encode(slab, kind, columns), expected)


@pytest.mark.parametrize(("name", "weighted"), KERNELS)
class TestSameBytes:
    @pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
    def test_normal_rows(self, name: str, weighted: bool, dtype: str) -> None:
        assert has_kernel(encoding(name), weighted)
        columns = importance(COLUMNS) if weighted else None
        assert_same(slab_of(normal(n_rows(name)), dtype), name, columns)

    def test_heavy_tailed_rows(self, name: str, weighted: bool) -> None:
        columns = importance(COLUMNS) if weighted else None
        assert_same(slab_of(heavy_tailed(n_rows(name))), name, columns)

    def test_trained_rows(self, name: str, weighted: bool) -> None:
        stored = trained()[: 1024 * n_rows(name)]
        columns = importance(256) if weighted else None
        assert_same(Slab(stored.view(np.uint8), "BF16", 256), name, columns)

    def test_special_rows_one_by_one(self, name: str, weighted: bool) -> None:
        for row in special():
            columns = importance(COLUMNS) if weighted else None
            assert_same(slab_of(row[np.newaxis]), name, columns)

    def test_special_rows_beside_ordinary_ones(self, name: str, weighted: bool) -> None:
        ordinary = [row for row in special() if np.abs(row).max() < 1e9]
        rows = np.concatenate([normal(20), np.array(ordinary), normal(21)])
        assert_same(slab_of(rows), name, importance(COLUMNS) if weighted else None)

    def test_columns_without_importance(self, name: str, weighted: bool) -> None:
        if weighted:
            assert_same(slab_of(normal(50)), name, importance(COLUMNS, "holes"))
            assert_same(slab_of(special()[:9]), name, importance(COLUMNS, "holes"))
            assert_same(slab_of(normal(50)), name, np.zeros(COLUMNS, np.float32))

    @pytest.mark.parametrize("n_rows", [1, 2, 7, 33])
    def test_any_number_of_blocks(self, name: str, weighted: bool, n_rows: int) -> None:
        columns = importance(768) if weighted else None
        assert_same(slab_of(normal(n_rows, 768)), name, columns)


@pytest.mark.parametrize(
    ("name", "weighted"), [("IQ4_NL", False), ("IQ4_NL", True), *((n, True) for n in LEGACY)]
)
@pytest.mark.parametrize("columns", [32, 96, 288, 5632 + 32])
def test_rows_that_are_no_whole_superblocks(name: str, weighted: bool, columns: int) -> None:
    weights = importance(columns) if weighted else None
    assert_same(slab_of(normal(40, columns)), name, weights)


def test_ordinary_rows_are_not_left_to_ggml(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("ggml was called")

    monkeypatch.setattr("quantkit.encodings.fast.encode.ggml.encode", refuse)
    slab = slab_of(normal(300, 256), "BF16")
    for name, weighted in KERNELS:
        encode(slab, encoding(name), importance(256) if weighted else None)


def test_every_float_near_a_threshold_of_the_iq4_table_rounds_as_in_ggml() -> None:
    for below, above, change in zip(VALUES[:-1], VALUES[1:], THRESHOLDS, strict=True):
        x = (change.view(np.int32) + np.arange(-2000, 2000, dtype=np.int32)).view(np.float32)
        np.testing.assert_array_equal(x - below < above - x, x < change)


_OTHER_PROCESSOR = """
import sys
from tests.encodings.test_fast import *
for kernel in sys.argv[1:]:
    name, weighted = kernel.split("/")
    columns = importance(COLUMNS) if weighted == "True" else None
    assert_same(slab_of(np.concatenate([normal(70), heavy_tailed(70)]), "BF16"), name, columns)
    assert_same(slab_of(np.array([r for r in special() if abs(r).max() < 1e9])), name, columns)
from quantkit.encodings.fast.k_signed import encode_q3_k
print(*(("zmm" in a, "ymm" in a) for a in list(encode_q3_k.inspect_asm().values())[:1]))
"""
_PROCESSORS = {
    "generic": ("generic", "", "(False, False)"),
    "AVX2": ("haswell", "+avx2,+fma,+bmi2,+f16c", "(False, True)"),
}


def on_processor(cpu: str, kernels: list[tuple[str, bool]], cache_folder: Path) -> None:
    model, features, registers = _PROCESSORS[cpu]
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESSOR, *(f"{n}/{w}" for n, w in kernels)],
        env={
            **os.environ,
            "NUMBA_CPU_NAME": model,
            "NUMBA_CPU_FEATURES": features,
            "NUMBA_CACHE_DIR": str(cache_folder),
        },
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if ("Q3_K", False) in kernels:
        assert done.stdout.strip() == registers


@pytest.mark.skipif(
    os.uname().machine not in ("x86_64", "AMD64"), reason="names processors of the x86 family"
)
class TestOtherProcessors:
    def test_same_bytes(self, tmp_path: Path) -> None:
        on_processor("generic", [("Q3_K", False), ("Q4_K", False)], tmp_path)

    @pytest.mark.parametrize(
        "cpu",
        [
            pytest.param("generic", marks=pytest.mark.native),
            pytest.param("AVX2", marks=pytest.mark.search),  # which most machines are, or more
        ],
    )
    def test_same_bytes_for_every_kernel(self, cpu: str, tmp_path: Path) -> None:
        on_processor(cpu, KERNELS, tmp_path)


class TestCache:
    """Compiled once per machine, and not at all where there is nowhere to keep the result."""

    NAMES = "Q6_K, Q4_0"
    CODE = (
        "from numba.core.event import install_recorder\n"
        "from quantkit.encodings.encoding import encoding\n"
        "from quantkit.encodings.fast.prepare import prepare\n"
        "wanted = [(encoding('Q6_K'), False), (encoding('Q4_0'), True)]\n"
        "with install_recorder('numba:run_pass') as here:\n"
        "    prepare(wanted, ['BF16'], print)\n"
        "print('here' if here.buffer else 'not here')\n"
    )

    def run(self, **env: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", self.CODE],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def test_the_second_process_does_not_compile(self, tmp_path: Path) -> None:
        said = f"Compiling kernels, once for this machine: {self.NAMES}"
        assert self.run(NUMBA_CACHE_DIR=str(tmp_path)) == [said, "not here"]
        assert self.run(NUMBA_CACHE_DIR=str(tmp_path)) == ["not here"]

    def test_a_folder_that_cannot_be_written_does_no_harm(self, tmp_path: Path) -> None:
        blocked = tmp_path / "file"
        blocked.touch()
        said, where = self.run(NUMBA_CACHE_DIR=str(blocked / "x"))
        assert said.startswith(f"Compiling kernels: {self.NAMES}. They cannot be saved")
        assert where == "here"


@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_every_kernel_is_compiled_by_one_process(n: int) -> None:
    wishes = [(name, weighted) for name, weighted in KERNELS if name != "Q5_0"] + [("NEW", True)]
    found = shares(wishes, n)
    assert len(found) <= n
    assert all(found)
    assert sorted(wish for share in found for wish in share) == sorted(wishes)


def test_importing_quantkit_does_not_import_numba() -> None:
    code = (
        "import sys, quantkit.cli.app, quantkit.cli.build, quantkit.building.engine\n"
        "assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
