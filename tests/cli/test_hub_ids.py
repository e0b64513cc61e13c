"""Commands that look at a model on the Hub by its name."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.building.builds import build
from tests.cli.command import quantkit, refusal
from tests.hub_server import COMMIT, HubServer, client_of, serve
from tests.random_checkpoints import random_checkpoint

ID = "someone/Model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("hub") / "Model", "mistral", shards=2)


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[HubServer]:
    shutil.copytree(model, tmp_path / "repo")
    with serve(HubServer(tmp_path / "repo")) as server, client_of(server, tmp_path / "cache"):
        yield server


@pytest.mark.parametrize("name", [ID, f"{ID}@main", f"{ID}@{COMMIT}"])
def test_inspect(hub: HubServer, model: Path, name: str) -> None:
    outcome = quantkit("inspect", name, "--json")
    assert not outcome.code, outcome
    found = json.loads(outcome.out)
    here = json.loads(quantkit("inspect", model, "--json").out)
    same = ("kind", "family", "parameters", "bytes", "files", "metadata", "tensors")
    assert {key: found[key] for key in same} == {key: here[key] for key in same}
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    assert hub.bytes_sent < weights / 4  # headers and small files


def test_inspect_of_what_is_not_there(hub: HubServer) -> None:  # noqa: ARG001 - it is asked
    assert "someone/Other" in refusal(quantkit("inspect", "someone/Other"))


@pytest.mark.parametrize("command", ["fit", "inspect"])
def test_a_repository_of_ggufs_lists_them(hub: HubServer, model: Path, command: str) -> None:
    made = build(model, hub.folder.parent / "made", "q8_0", "q4_0", check=None)
    for file in hub.folder.iterdir():
        file.unlink()
    for artifact in made:
        shutil.copyfile(artifact.path, hub.folder / artifact.path.name)
    sentence = refusal(quantkit(command, ID))
    assert f"{ID}@{COMMIT}" in sentence or ID in sentence
    for artifact in made:
        assert artifact.path.name in sentence
    assert f"{ID}/{min(artifact.path.name for artifact in made)}" in sentence
