from pathlib import Path

import pytest

from tests.random_checkpoints import random_checkpoint


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral with three weight files and 2 M parameters. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("mixtral") / "model"
    return random_checkpoint(
        folder, "mixtral", shards=3, intermediate_size=256, num_hidden_layers=1
    )


@pytest.fixture(scope="session")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model with 0.6 M parameters in one file. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("mistral") / "model"
    return random_checkpoint(folder, "mistral", intermediate_size=256, num_hidden_layers=1)
