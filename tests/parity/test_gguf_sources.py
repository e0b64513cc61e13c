"""Quants of GGUFs of many architectures, whole and byte for byte, against ``llama-quantize``."""

from pathlib import Path

import numpy as np
import pytest

from quantkit.build.engine import build
from quantkit.build.work import prepare
from quantkit.checkpoint.gguf import read_header
from quantkit.checkpoint.gguf_source import open_gguf
from quantkit.plan.quants import all_quants, find_quants
from tests import native_tools
from tests.architectures.ggufs import small_ggufs
from tests.architectures.small import SMALL
from tests.imatrix_writer import write_gguf_imatrix
from tests.parity.both_ways import Source

pytestmark = pytest.mark.native

QUANTS = tuple(all_quants())
PER_MODEL = 3
# Sixteen that differ in what they are made of: these get more quants, with and without an
# importance matrix, and in shards.
CHOSEN = (
    "qwen3", "qwen3moe", "gemma3", "gpt-oss", "deepseek2", "falcon-h1", "mamba", "falcon",
    "t5", "bert", "lfm2moe", "granitehybrid", "phi-mini", "mixtral", "qwen35moe", "gemma3n",
)  # fmt: skip
LADDER = ("bf16", "q8_0", "q5_k_m", "q4_k_m", "q4_0", "q3_k_s", "q2_k")
WEIGHTED = ("iq4_xs", "iq3_xxs", "iq2_m", "iq1_s", "q4_1")


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


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
def test_chosen(ggufs: dict[str, Path], name: str, weighted: bool, tmp_path: Path) -> None:
    imatrix = imatrix_of(ggufs[name], tmp_path / "imatrix.gguf") if weighted else None
    quants = WEIGHTED if weighted else LADDER
    Source(ggufs[name], ggufs[name]).compare(quants, tmp_path, imatrix=imatrix)


@pytest.mark.parametrize("name", CHOSEN)
def test_shards(ggufs: dict[str, Path], name: str, tmp_path: Path) -> None:
    """From shards, and into shards, as llama-gguf-split cuts them."""
    gguf = ggufs[name]
    whole = prepare(gguf, find_quants(["q8_0"])).layouts[0].plan
    megabytes = -(-max(tensor.n_bytes for tensor in whole.tensors) // 10**6)
    work = prepare(gguf, find_quants(["q8_0"]), shard_size=megabytes * 10**6)
    assert work.layouts[0].folder is not None, "it is small enough for one"
    (artifact,) = build(work, tmp_path / "ours", jobs=2, max_memory=2**30)
    file = tmp_path / "whole.gguf"
    native_tools.quantize(gguf, file, "q8_0", threads=1)
    theirs = native_tools.split(file, tmp_path / "theirs", f"{megabytes}M")
    ours = sorted(artifact.path.parent.glob("*.gguf"))
    assert [shard.read_bytes() for shard in ours] == [shard.read_bytes() for shard in theirs]

    cut = native_tools.split(gguf, tmp_path / "cut", "2M")
    from_shards = prepare(cut[0], find_quants(["q8_0"]))
    (again,) = build(from_shards, tmp_path / "again", jobs=2, max_memory=2**30)
    assert again.path.read_bytes() == file.read_bytes()
