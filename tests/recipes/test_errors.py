"""Errors of encodings against llama.cpp's quantizer and gguf-py's way back."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.imatrix import Imatrix
from quantkit.checkpoint.rows import open_rows
from quantkit.core.errors import WeightsError
from quantkit.encodings import ggml
from quantkit.encodings.encoding import encoding
from quantkit.encodings.kernel import load_kernel
from quantkit.encodings.widen import widen
from quantkit.families.model import Decoder, Target
from quantkit.recipes.errors import measure_errors
from tests.building.builds import small_slabs
from tests.calibration.runs import TINY, opened

KINDS = [encoding(name) for name in ("Q2_K", "Q4_0", "Q8_0", "F16", "F32")]
EXPERTS, QUERIES, OUTPUT = "blk.1.ffn_down_exps.weight", "blk.0.attn_q.weight", "output.weight"
WANTED = dict.fromkeys((EXPERTS, QUERIES, OUTPUT), KINDS)


@pytest.fixture(scope="module")
def sparse() -> tuple[Checkpoint, Decoder]:
    return opened(TINY / "tiny-mixtral")


@pytest.fixture(scope="module")
def imatrix() -> Imatrix:
    """Importance of two of the tensors, other of each expert."""
    rng = np.random.default_rng(5)
    sizes = {EXPERTS: 8 * 256, QUERIES: 256}
    entries = {name: rng.gamma(1, 1, size).astype(np.float32) for name, size in sizes.items()}
    return Imatrix(Path("imatrix.gguf"), "", entries, 1, ())


def test_errors_are_those_of_what_llama_cpp_writes(
    sparse: tuple[Checkpoint, Decoder], imatrix: Imatrix
) -> None:
    checkpoint, model = sparse
    found = measure_errors(checkpoint, model, WANTED, imatrix, load_kernel("fast"))
    assert found.keys() == {(name, kind.name) for name in WANTED for kind in KINDS}
    for name in WANTED:
        target = next(target for target in model.targets if target.name == name)
        assert found[name, "F32"] == 0
        for kind in KINDS[:-1]:
            wanted = _error_of(checkpoint, target, imatrix, kind.name)
            assert found[name, kind.name] == pytest.approx(wanted, rel=1e-5)


def test_neither_slabs_nor_threads_matter(
    sparse: tuple[Checkpoint, Decoder], imatrix: Imatrix
) -> None:
    checkpoint, model = sparse
    kernel = load_kernel("ggml")
    shares: list[float] = []
    whole = measure_errors(checkpoint, model, WANTED, imatrix, kernel)
    with small_slabs(2**14):
        threads = measure_errors(
            checkpoint, model, WANTED, imatrix, kernel, jobs=3, report=shares.append
        )
        one = measure_errors(checkpoint, model, WANTED, imatrix, kernel)
    assert threads == one
    assert one == pytest.approx(whole, rel=1e-9)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_sample_is_of_every_expert_and_near(
    sparse: tuple[Checkpoint, Decoder], imatrix: Imatrix
) -> None:
    checkpoint, model = sparse
    kernel = load_kernel("ggml")
    whole = measure_errors(checkpoint, model, WANTED, imatrix, kernel)
    with small_slabs(2**14):  # a run may lie in two slabs
        some = measure_errors(checkpoint, model, WANTED, imatrix, kernel, rows=60)
    assert some != whole
    assert some == pytest.approx(whole, rel=0.1)
    assert measure_errors(checkpoint, model, WANTED, imatrix, kernel, rows=10**6) == whole


def test_a_damaged_weight_is_named(sparse: tuple[Checkpoint, Decoder], imatrix: Imatrix) -> None:
    from dataclasses import replace

    checkpoint, model = sparse
    read = open_rows(checkpoint)

    def damaged(name: str, first: int, count: int) -> NDArray[np.uint8]:
        raw = read(name, first, count)
        if name.endswith("layers.1.block_sparse_moe.experts.3.w2.weight"):
            raw.view(np.uint16)[5] = 0x7FC0  # NaN
        return raw

    with pytest.raises(WeightsError, match=r"experts\.3\.w2\.weight.*NaN or infinite.*row 768"):
        measure_errors(
            replace(checkpoint, read_rows=damaged), model, WANTED, imatrix, load_kernel("ggml")
        )


def _error_of(checkpoint: Checkpoint, target: Target, imatrix: Imatrix, kind: str) -> float:
    columns = imatrix.columns_of(target)
    off = size = 0.0
    for number, block in enumerate(target.blocks):
        raw = open_rows(checkpoint)(block.source, block.row, block.rows)
        rows = widen(raw, checkpoint.tensors[block.source].dtype).reshape(-1, target.columns)
        importance = None if columns is None else columns[number]
        data = ggml.encode(rows, encoding(kind), importance)
        back = dequantize(data, GGMLQuantizationType[kind]).astype(np.float64)
        weights = np.ones(target.columns) if importance is None else importance
        off += float((np.square(back - rows) * weights).sum())
        size += float((np.square(rows.astype(np.float64)) * weights).sum())
    return off / size
