"""Building what llama.cpp's converter describes: each byte of the source is read once."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.building import source as reading
from quantkit.building.work import Work, prepare
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.converter.rows import ConvertedRows
from quantkit.checkpoint.open import open_checkpoint
from quantkit.planning.quants import find_quants
from tests.building.builds import artifacts_in, build_work, small_slabs
from tests.large_experts import BLOCK, large_experts

QUANTS = ("q8_0", "q4_k_m")
EXPERTS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of a Qwen3 MoE in FP8, whose matrices the converter computes."""
    folder = tmp_path_factory.mktemp("described") / "model"
    return large_experts(folder, hidden=256, width=256, experts=EXPERTS, fp8=True)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Iterator[Checkpoint]:
    found = open_checkpoint(folder)
    assert found.description is not None
    yield found
    found.description.rows.close()


def work_of(checkpoint: Checkpoint) -> Work:
    return prepare(checkpoint, find_quants(QUANTS))


@pytest.fixture(scope="module")
def whole(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sha256 of what a build leaves that nothing happens to."""
    out = tmp_path_factory.mktemp("whole")
    with small_slabs(2**14):
        build_work(work_of(checkpoint), out)
    return artifacts_in(out)


def test_what_is_computed(checkpoint: Checkpoint) -> None:
    """Matrices in FP8 are computed, of weights and scales; the rest lies in the files."""
    description = checkpoint.description
    assert description is not None
    roles = {name.removeprefix("blk.0.").removesuffix(".weight") for name in description.computed}
    assert roles == {
        *("attn_q", "attn_k", "attn_v", "attn_output"),
        *("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    }
    assert description.n_read == 0
    (needs,) = description.rows.needs([("blk.0.ffn_up_exps.weight", 256, BLOCK)])
    sizes = sorted(part.stop - part.start for part in needs)
    assert sizes == [256 // BLOCK * 4, BLOCK * 256]  # a row of scales, and the weights it is for


def test_numbers(folder: Path, checkpoint: Checkpoint) -> None:
    """Weights times the scale of their block, in float32."""
    from safetensors.torch import load_file

    read_rows = checkpoint.read_rows
    assert read_rows is not None
    tensors = load_file(folder / "model-00001-of-00001.safetensors")
    for expert in range(EXPERTS):
        name = f"model.layers.0.mlp.experts.{expert}.down_proj.weight"
        scales = tensors[f"{name}_scale_inv"].numpy().repeat(BLOCK, 0).repeat(BLOCK, 1)
        wanted = tensors[name].float().numpy() * scales
        raw = read_rows("blk.0.ffn_down_exps.weight", expert * 256 + 3, 250)
        assert np.array_equal(raw.view(np.float32).reshape(250, 256), wanted[3:253])
    every = read_rows("blk.0.ffn_down_exps.weight", 0, EXPERTS * 256)  # over all of them
    halves = [read_rows("blk.0.ffn_down_exps.weight", 128 * n, 128) for n in range(2 * EXPERTS)]
    assert np.array_equal(every, np.concatenate(halves))


def test_every_byte_is_read_once(
    checkpoint: Checkpoint, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files front to back, and nothing again for what is computed of them."""
    read: Counter[Path] = Counter()
    again: list[str] = []
    exactly = reading.read_exactly

    def counted(fd: int, n_bytes: int, offset: int, path: Path) -> Any:
        read[path] += n_bytes
        return exactly(fd, n_bytes, offset, path)

    def read_again(_: ConvertedRows, name: str, *__: int) -> Any:
        again.append(name)
        raise AssertionError(name)

    monkeypatch.setattr(reading, "read_exactly", counted)
    monkeypatch.setattr(ConvertedRows, "read", read_again)
    with small_slabs(2**14):
        build_work(work_of(checkpoint), tmp_path)
    assert artifacts_in(tmp_path) == whole
    assert read == {file: file.stat().st_size for file in checkpoint.files}
    assert not again


def test_what_is_not_held_is_read_again(
    checkpoint: Checkpoint, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_HELD", 2**15)
    with small_slabs(2**14):
        build_work(work_of(checkpoint), tmp_path)
    assert artifacts_in(tmp_path) == whole
