"""Quants of sixteen GGUFs that differ in what they are made of, and their shards, byte for byte."""

from pathlib import Path

import pytest

from quantkit.building.engine import build
from quantkit.building.work import prepare
from quantkit.formats.layout import FileOptions
from quantkit.planning.quants import find_quants
from tests import native_tools
from tests.architectures.ggufs import small_ggufs
from tests.parity.both_ways import Source
from tests.parity.test_gguf_sources import imatrix_of

pytestmark = pytest.mark.native

CHOSEN = (
    "qwen3", "qwen3moe", "gemma3", "gpt-oss", "deepseek2", "falcon-h1", "mamba", "falcon",
    "t5", "bert", "lfm2moe", "granitehybrid", "phi-mini", "mixtral", "qwen35moe", "gemma3n",
)  # fmt: skip
LADDER = ("bf16", "q8_0", "q5_k_m", "q4_k_m", "q4_0", "q3_k_s", "q2_k")
WEIGHTED = ("iq4_xs", "iq3_xxs", "q4_1")
TINY = ("iq2_m", "iq1_s")  # in turn: making their tables takes llama-quantize seconds


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_ggufs(tmp_path_factory, CHOSEN)


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
def test_chosen(ggufs: dict[str, Path], name: str, weighted: bool, tmp_path: Path) -> None:
    imatrix = imatrix_of(ggufs[name], tmp_path / "imatrix.gguf") if weighted else None
    tiny = TINY[CHOSEN.index(name) % len(TINY)]
    quants = (*WEIGHTED, tiny) if weighted else LADDER
    Source(ggufs[name], ggufs[name]).compare(quants, tmp_path, imatrix=imatrix)


@pytest.mark.parametrize("name", CHOSEN)
def test_shards(ggufs: dict[str, Path], name: str, tmp_path: Path) -> None:
    """From shards, and into shards, as llama-gguf-split cuts them."""
    gguf = ggufs[name]
    whole = prepare(gguf, find_quants(["q8_0"])).layouts[0].plan
    megabytes = -(-max(tensor.n_bytes for tensor in whole.tensors) // 10**6)
    work = prepare(gguf, find_quants(["q8_0"]), FileOptions(shard_size=megabytes * 10**6))
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
