"""Quants of GGUFs of many architectures, whole and byte for byte, against ``llama-quantize``."""

from pathlib import Path

import numpy as np
import pytest

from quantkit.checkpoint.gguf import read_header
from quantkit.checkpoint.gguf_source import open_gguf
from quantkit.planning.quants import all_quants
from tests.architectures.ggufs import small_ggufs
from tests.architectures.small import SMALL
from tests.imatrix_writer import write_gguf_imatrix
from tests.parity.both_ways import Source

pytestmark = pytest.mark.native

# Bytes of variants are compared in test_parity.py and test_imatrix.py.
QUANTS = tuple(name for name, quant in all_quants().items() if not quant.base)
PER_MODEL = 3


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_ggufs(tmp_path_factory)


def imatrix_of(gguf: Path, path: Path) -> Path:
    """An importance matrix with an entry for every matrix that is no embedding."""
    rng = np.random.default_rng(7)
    entries = {}
    for tensor in open_gguf(gguf).tensors.values():
        if len(tensor.shape) > 1 and tensor.name.endswith("weight") and "token_" not in tensor.name:
            matrices = tensor.shape[0] if len(tensor.shape) == 3 else 1
            sums = rng.uniform(0.1, 9, (matrices, tensor.shape[-1]))
            entries[tensor.name] = (sums, np.full(matrices, 8.0))
    return write_gguf_imatrix(path, entries)


def buildable(gguf: Path, quants: tuple[str, ...]) -> list[str]:
    """Those that llama-quantize makes of this model.

    q1_0 has nothing to fall back to, and experts that are in MXFP4 already stay so or are refused.
    """
    if any(tensor.dtype == "MXFP4" for tensor in open_gguf(gguf).tensors.values()):
        return ["mxfp4_moe"]
    return [quant for quant in quants if not (quant == "q1_0" and narrow(gguf))]


def narrow(gguf: Path) -> bool:
    return any(len(t.shape) > 1 and t.shape[-1] % 128 for t in read_header(gguf).tensors)


@pytest.mark.parametrize("name", SMALL)
def test_every_architecture(ggufs: dict[str, Path], name: str, tmp_path: Path) -> None:
    """A few quants of each, every quant of some: which, goes round."""
    first = list(SMALL).index(name) * PER_MODEL
    quants = tuple(QUANTS[(first + n) % len(QUANTS)] for n in range(PER_MODEL))
    source = Source(ggufs[name], ggufs[name])
    imatrix = imatrix_of(ggufs[name], tmp_path / "imatrix.gguf")
    source.compare(buildable(ggufs[name], quants), tmp_path, imatrix=imatrix)
