"""Every small model is one that the converter writes and that llama-quantize takes for a model."""

from pathlib import Path

import pytest
from gguf import GGUFReader, ReaderTensor

from tests.architectures.dry_run import dry_run
from tests.architectures.ggufs import small_ggufs
from tests.architectures.small import SMALL

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_ggufs(tmp_path_factory)


@pytest.mark.parametrize("name", SMALL)
def test_llama_quantize_takes_every_small_model(ggufs: dict[str, Path], name: str) -> None:
    reader = GGUFReader(ggufs[name])
    arch = reader.get_field("general.architecture")

    found = dry_run(ggufs[name], "Q4_K_M")

    assert arch is not None
    assert arch.contents() == SMALL[name].arch
    assert set(found) == {tensor.name for tensor in reader.tensors}


def test_blocks_of_256_fit_into_many_architectures_and_not_into_all(
    ggufs: dict[str, Path],
) -> None:
    fitting, others = set(), set()
    for name, file in ggufs.items():
        matrices = [tensor for tensor in GGUFReader(file).tensors if is_matrix(tensor)]
        if all(int(tensor.shape[0]) % 256 == 0 for tensor in matrices):
            fitting.add(SMALL[name].arch)
        else:
            others.add(SMALL[name].arch)

    assert len(fitting | others) >= 70
    assert len(fitting) >= 30
    assert len(others) >= 30


def is_matrix(tensor: ReaderTensor) -> bool:
    return len(tensor.shape) > 1 and int(tensor.shape[1]) > 1 and "ssm_conv1d" not in tensor.name
