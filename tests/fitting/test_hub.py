"""Models on the Hub give the figures of the same models on disk."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantkit.building.work import prepare
from quantkit.fitting.probe import probe
from quantkit.fitting.settings import ContextSettings
from quantkit.fitting.subject import Variant, open_subject
from quantkit.formats.layout import FileOptions
from quantkit.planning.quants import find_quants
from tests.building.builds import build_work
from tests.cli.command import quantkit
from tests.hub_server import HubServer, serve
from tests.parity.cases import TRAINED

SETTINGS = ContextSettings(512)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Serves ``tmp_path / "repo"`` to huggingface_hub, with a cache of its own."""
    from huggingface_hub import close_session, constants

    folder = tmp_path / "repo"
    folder.mkdir()
    with serve(HubServer(folder)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield server
        close_session()


def local(variant: Variant) -> Variant:
    """A variant without what the place of its model changes: names and the download."""
    return replace(variant, file_name="", download_bytes=0, file_bytes=0)


def test_a_checkpoint(hub: HubServer) -> None:
    shutil.copytree(TRAINED / "tiny-mixtral", hub.folder, dirs_exist_ok=True)
    remote = open_subject("someone/Model")
    here = open_subject(str(TRAINED / "tiny-mixtral"))
    assert (remote.title, remote.origin) == ("someone/Model", "hub")
    assert list(map(local, remote.variants)) == list(map(local, here.variants))
    assert all(variant.file_is_exact is not variant.needs_imatrix for variant in remote.variants)
    assert {v.download_bytes for v in remote.variants} == {v.source_bytes for v in here.variants}
    assert probe(remote, SETTINGS).probes == probe(here, SETTINGS).probes


@pytest.mark.parametrize("shard_size", [None, 10**6])
def test_a_gguf(hub: HubServer, shard_size: int | None, tmp_path: Path) -> None:
    quants = find_quants(["q4_k_m"])
    work = prepare(TRAINED / "tiny-mistral", quants, FileOptions(shard_size=shard_size))
    path = build_work(work, tmp_path / "built")[0].path
    files = [path] if shard_size is None else sorted(path.parent.glob("*.gguf"))
    assert (len(files) > 1) is (shard_size is not None)
    (hub.folder / "sub").mkdir()
    for file in files:
        shutil.copy(file, hub.folder / "sub" / file.name)
    remote = open_subject(f"someone/Model/sub/{path.name}")
    here = open_subject(str(path))
    (variant,) = remote.variants
    assert variant.file_bytes == here.variants[0].file_bytes == variant.download_bytes
    assert variant.size_of == here.variants[0].size_of
    assert remote.shape == here.shape
    assert probe(remote, SETTINGS).probes == probe(here, SETTINGS).probes


def test_the_command(hub: HubServer) -> None:
    shutil.copytree(TRAINED / "tiny-mistral", hub.folder, dirs_exist_ok=True)
    outcome = quantkit("fit", "someone/Model", "-q", "q4_k_m", "--gpu", "8GB", "--json")
    assert outcome.code in (0, None), outcome
    found: dict[str, Any] = json.loads(outcome.out)
    assert found["model"]["title"] == "someone/Model"
    assert found["quants"][0]["mode"] == "gpu"
    assert found["quants"][0]["download_to_build"] > 0
