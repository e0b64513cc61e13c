import sys
from pathlib import Path
from typing import Any

import pytest

from tests.building.builds import build
from tests.large_checkpoints import large_checkpoint
from tests.measured import measure

MIB = 2**20
SLAB = 16 * MIB  # one slab of weights, as float32

SHAPE: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_local_experts": 1,
    "num_experts_per_tok": 1,
}


@pytest.fixture(scope="module")
def by_layers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints with tensors of up to three slabs: 90 MB of weights per layer."""
    folder = tmp_path_factory.mktemp("memory")
    return {n: large_checkpoint(folder / str(n), num_hidden_layers=n, **SHAPE) for n in (1, 2)}


@pytest.fixture(scope="module")
def of_two_layers(by_layers: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> int:
    return peak_memory(by_layers[2], tmp_path_factory.mktemp("two") / "out", "--jobs", "2")


def peak_memory(checkpoint: Path, out: Path, *options: str) -> int:
    command: list[str | Path] = [sys.executable, "-m", "quantkit", "build", checkpoint]
    command += ["-o", out, "--no-smoke", "-q", "q8_0", "-q", "f16", *options]
    return measure(command).peak_memory


def test_memory_does_not_grow_with_the_model(
    by_layers: dict[int, Path], of_two_layers: int, tmp_path: Path
) -> None:
    """A second layer is 90 MB more; two slabs are 34."""
    of_one = peak_memory(by_layers[1], tmp_path, "--jobs", "2")
    assert of_two_layers - of_one < 2 * SLAB


def test_max_memory_bounds_what_weights_take(by_layers: dict[int, Path], tmp_path: Path) -> None:
    checkpoint = by_layers[1]
    without_weights = peak_memory(checkpoint, tmp_path / "planned", "--dry-run")
    narrow, wide = (
        peak_memory(checkpoint, tmp_path / limit, "--jobs", "8", "--max-memory", limit)
        for limit in ("64MiB", "1GiB")
    )
    assert narrow - without_weights < 64 * MIB
    # The limit is what did it: eight threads take more where they may.
    assert wide - narrow > 2 * SLAB


def test_a_gguf_takes_no_more_than_its_checkpoint(
    by_layers: dict[int, Path], of_two_layers: int, tmp_path: Path
) -> None:
    (bf16,) = build(by_layers[2], tmp_path / "bf16", "bf16")
    of_gguf = peak_memory(bf16.path, tmp_path / "out", "--jobs", "2")
    assert of_gguf - of_two_layers < 2 * SLAB
