"""Every small model is one that the converter writes and that llama-quantize takes for a model."""

from pathlib import Path

import pytest
from gguf import GGUFReader

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
