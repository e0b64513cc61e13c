"""The bytes of an artifact depend on the weights and the plan, not on how the work was done."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from quantkit.building.work import prepare
from quantkit.formats.layout import FileOptions
from quantkit.planning.quants import find_quants
from tests.building.builds import artifacts_in, build, build_work, small_slabs
from tests.random_checkpoints import (
    config_of,
    fuse_experts,
    random_checkpoint,
    random_tensors,
    write_tokenizer,
)
from tests.safetensors_writer import to_bf16, write_checkpoint

QUANTS = ("bf16", "q8_0", "q4_k_m", "q3_k_m")
MIB = 2**20


@pytest.fixture(scope="module")
def reference(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("reference")
    build(mixtral, out, *QUANTS, jobs=1)
    artifacts = artifacts_in(out)
    assert len(artifacts) == len(QUANTS)
    return artifacts


@pytest.mark.parametrize(
    ("jobs", "max_memory", "slab"),
    [
        (1, 64 * MIB, 2**13),
        (2, 64 * MIB, 3 * 2**14),
        (2, 1024 * MIB, 4 * MIB),
        (8, 64 * MIB, 4 * MIB),
        (8, 1024 * MIB, 2**13),
    ],
)
def test_any_jobs_and_memory(
    mixtral: Path,
    tmp_path: Path,
    reference: dict[str, str],
    jobs: int,
    max_memory: int,
    slab: int,
) -> None:
    work = prepare(mixtral, find_quants(QUANTS))
    with small_slabs(slab, commit_seconds=0.05):
        build_work(work, tmp_path, jobs=jobs, max_memory=max_memory)
    assert artifacts_in(tmp_path) == reference


def test_together_or_one_by_one(mixtral: Path, tmp_path: Path, reference: dict[str, str]) -> None:
    for quant in reversed(QUANTS):
        build(mixtral, tmp_path, quant)
    assert artifacts_in(tmp_path) == reference


@pytest.mark.parametrize("layout", ["single file", "many files", "fused", "fused files"])
def test_any_layout_of_the_checkpoint(
    mixtral: Path, tmp_path: Path, reference: dict[str, str], layout: str
) -> None:
    config = config_of("mixtral", intermediate_size=256, num_hidden_layers=1)
    tensors = random_tensors(config)
    if layout.startswith("fused"):
        tensors = fuse_experts(tensors, 8)
    checkpoint = tmp_path / mixtral.name
    write_checkpoint(checkpoint, tensors, config, 5 if layout.endswith("files") else 1)
    write_tokenizer(checkpoint)
    with small_slabs(2**13):
        build(checkpoint, tmp_path / "out", *QUANTS)
    assert artifacts_in(tmp_path / "out") == reference


def test_any_place(mixtral: Path, tmp_path: Path, reference: dict[str, str]) -> None:
    """Of the folder's path only the name counts."""
    copy = shutil.copytree(mixtral, tmp_path / "some where" / mixtral.name)
    build(copy, tmp_path / "out", *QUANTS)
    assert artifacts_in(tmp_path / "out") == reference


def test_a_source_that_holds_the_same_numbers_in_32_bits(
    mixtral: Path, tmp_path: Path, reference: dict[str, str]
) -> None:
    config = config_of("mixtral", intermediate_size=256, num_hidden_layers=1)
    wide = {
        name: (np.frombuffer(stored[2], np.uint16).astype(np.uint32) << 16)
        .view(np.float32)
        .reshape(stored[1])
        for name, stored in random_tensors(config).items()
        if isinstance(stored, tuple)
    }
    checkpoint = tmp_path / mixtral.name
    write_checkpoint(checkpoint, wide, config)
    write_tokenizer(checkpoint)
    build(checkpoint, tmp_path / "out", *QUANTS)
    assert artifacts_in(tmp_path / "out") == reference


@pytest.mark.parametrize(
    ("dtype", "slab"), [("BF16", 2**10), ("BF16", 2**13), ("F16", 3000), ("F32", 3000)]
)
def test_heads_and_biases_in_any_slabs(tmp_path: Path, dtype: str, slab: int) -> None:
    """Rows of rotary heads change places; slabs cut between heads and nowhere else."""
    checkpoint = random_checkpoint(
        tmp_path / "model",
        "llama",
        dtype=dtype,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=2,
        attention_bias=True,
    )
    work = prepare(checkpoint, find_quants(["f32", "f16", "q4_0"]))
    assert any(target.role == "attn_q_bias" for target in work.model.targets)
    with small_slabs(slab):
        build_work(work, tmp_path / "small")
    build_work(work, tmp_path / "large")
    small, large = artifacts_in(tmp_path / "small"), artifacts_in(tmp_path / "large")
    assert len(small) == 3
    assert small == large


def test_shards_hold_what_the_single_file_holds(mixtral: Path, tmp_path: Path) -> None:
    """In any slabs; the shards' tensors one after another are the single file's."""
    from gguf import GGUFReader

    quants = find_quants(["q8_0", "q4_k_m"])
    work = prepare(mixtral, quants, FileOptions(shard_size=600_000))
    build_work(work, tmp_path / "large")
    with small_slabs(2**13):
        build_work(work, tmp_path / "small", jobs=8)
    shards = artifacts_in(tmp_path / "large")
    assert artifacts_in(tmp_path / "small") == shards
    build(mixtral, tmp_path / "single", "q8_0", "q4_k_m")
    for artifact in artifacts_in(tmp_path / "single"):
        whole = {
            tensor.name: (tensor.tensor_type, tensor.data.tobytes())
            for tensor in GGUFReader(tmp_path / "single" / artifact).tensors
        }
        parts: dict[str, tuple[object, bytes]] = {}
        names = [name for name in shards if name.startswith(artifact.removesuffix(".gguf"))]
        assert len(names) > 2
        for name in names:
            for tensor in GGUFReader(tmp_path / "large" / name).tensors:
                parts[tensor.name] = (tensor.tensor_type, tensor.data.tobytes())
        assert list(parts.items()) == list(whole.items())


def test_other_weights_make_other_bytes(tmp_path: Path) -> None:
    """So that the comparisons above could fail."""
    config = config_of("mistral", intermediate_size=256, num_hidden_layers=1)
    tensors = random_tensors(config)
    sums = []
    for number in range(2):
        checkpoint = tmp_path / str(number) / "model"
        norm = np.ones(256, np.float32)
        norm[0] += number
        tensors["model.norm.weight"] = to_bf16(norm)
        write_checkpoint(checkpoint, tensors, config)
        write_tokenizer(checkpoint)
        build(checkpoint, tmp_path / str(number) / "out", "q4_k_m")
        sums.append(artifacts_in(tmp_path / str(number) / "out"))
    assert sums[0].keys() == sums[1].keys()
    assert sums[0] != sums[1]
