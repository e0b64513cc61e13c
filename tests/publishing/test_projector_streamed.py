"""A projector leaves while the build runs, as the quants do."""

from pathlib import Path

import pytest

from tests.architectures.ggufs import stored_checkpoints, stored_ggufs
from tests.cli.command import quantkit
from tests.hub_writes import HubStore

pytestmark = pytest.mark.native

NAME = "llama4-vision"


def test_sent_and_deleted(
    hub: HubStore, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint = stored_checkpoints(tmp_path_factory, [NAME])[NAME]
    [expected] = stored_ggufs(tmp_path_factory, [NAME], "f16", mmproj=True).values()
    repo, out = "someone/Seeing-GGUF", tmp_path / "out"
    asked = ("--publish", repo, "--delete-published", "--license", "mit")

    outcome = quantkit("build", checkpoint, "-q", "q8_0", "--no-smoke", "-o", out, *asked)

    assert outcome.code == 0, outcome
    files = hub.repos[repo]
    [part] = [name for name in files if name.startswith("mmproj-")]
    assert bytes(files[part]) == expected.read_bytes()
    card = bytes(files["README.md"]).decode()
    assert f"`{part}`" in card
    assert f"  {part}\n" in bytes(files["SHA256SUMS"]).decode()
    assert not list(out.rglob("*.gguf"))
    assert quantkit("verify", repo).code == 0
