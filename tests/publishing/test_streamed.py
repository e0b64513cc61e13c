"""Building and publishing through a disk that holds neither the model nor its quants.

The server is ours (``tests.hub_both``); the client is huggingface_hub's.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import quantkit as package
from tests.building.builds import artifacts_in, names_in, small_slabs
from tests.cli.command import Outcome, quantkit, refusal
from tests.hub_both import serve_both
from tests.hub_server import HubServer, client_of
from tests.hub_writes import READER, WRITER, HubStore
from tests.measured import disk_use
from tests.random_checkpoints import random_checkpoint

ROOT = Path(package.__file__).parents[1]
ID, REPO = "someone/Model", "me/Model-GGUF"
SLAB, PIECE = 2**16, 2**17
SHARDS = ("--shard-size", "3MB")
NAMES = {"Model-Q8_0", "Model-Q4_K_M"}
ARGUMENTS = ("-q", "q8_0", "-q", "q4_k_m", "--jobs", "2", "--name", "Model")


@dataclass
class Hub:
    """A server with the checkpoint, and what is published there."""

    source: HubServer
    store: HubStore

    def files(self) -> dict[str, bytes]:
        return self.store.repos.get(REPO, {})

    def weights(self) -> dict[str, str]:
        return {
            name: hashlib.sha256(data).hexdigest()
            for name, data in dict(self.files()).items()
            if name.endswith(".gguf")
        }

    def weights_asked_for(self) -> int:
        """Requests for weights behind their headers."""
        return sum(
            path.endswith(".safetensors") and wanted is not None and wanted != "bytes=0-4095"
            for _, path, wanted in self.source.requests
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed") / "Model"
    random_checkpoint(folder, "mixtral", shards=3, intermediate_size=1024)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    return folder


@pytest.fixture(scope="module")
def local(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sha256 of what a local build makes of it."""
    out = tmp_path_factory.mktemp("local")
    done = quantkit("build", model, *ARGUMENTS, *SHARDS, "-o", out, "--no-smoke")
    assert done.code == 0, done.err
    return artifacts_in(out)


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[Hub]:
    """Small pieces and slabs, so that there are many, and a token that may write."""
    source, store = HubServer(model), HubStore()
    with (
        serve_both(source, store),
        client_of(source, tmp_path / "cache", WRITER),
        small_slabs(SLAB),
        patch("quantkit.checkpoint.ahead._LARGEST_PIECE", PIECE),
    ):
        yield Hub(source, store)


def publish(source: object, out: Path, *options: object) -> Outcome:
    wish = ("--publish", REPO, "--delete-published")
    return quantkit("build", source, *ARGUMENTS, *wish, "-o", out, *options)


def test_shards_leave_as_they_are_finished(hub: Hub, local: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    most = 0

    def watch(_oid: str, _received: int) -> None:
        nonlocal most
        most = max(most, disk_use(out))

    hub.store.on_upload = watch
    done = publish(ID, out, *SHARDS, "--max-disk", "14MB")

    assert done.code == 0, done.err
    assert "Published in me/Model-GGUF." in done.err
    assert hub.weights() == local
    assert names_in(out) == {"quantkit.json"}
    assert 0 < most < 14e6 + 2**20  # journal and manifest come on top
    assert sum(len(data) for name, data in hub.files().items() if name in local) > 20e6
    # The card comes when all that it describes is there.
    assert hub.store.commits[REPO][-1].paths == ("README.md",)
    manifest = json.loads(hub.files()["quantkit.json"])["artifacts"]
    assert set(manifest) == NAMES
    assert {
        file["name"]: file["sha256"] for entry in manifest.values() for file in entry["files"]
    } == local
    assert all("smoke" not in entry for entry in manifest.values())
    assert b"without a passing smoke test" in hub.files()["README.md"]
    verified = quantkit("verify", REPO)
    assert verified.code == 0, verified.err

    # Another run has nothing to do, and asks for nothing.
    commits, asked = len(hub.store.commits[REPO]), hub.weights_asked_for()
    assert publish(ID, out, *SHARDS).code == 0
    assert (len(hub.store.commits[REPO]), hub.weights_asked_for()) == (commits, asked)


def test_a_killed_run_sends_and_reads_nothing_twice(
    hub: Hub, local: dict[str, str], model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "tests.building.hub_build",
        str(SLAB),
        str(PIECE),
        "0",
        "build",
    ]
    wish = ["--publish", REPO, "--delete-published", *SHARDS, "-o", str(out)]
    running: list[int] = []
    begun = threading.Event()

    def kill_at_the_fourth(_oid: str, _received: int) -> None:
        """In the middle of its upload, which cannot end before this returns."""
        begun.wait()
        if running and len(hub.weights()) >= 3:
            os.kill(running.pop(), signal.SIGKILL)

    hub.store.on_upload = kill_at_the_fourth
    process = subprocess.Popen(
        [*command, ID, *ARGUMENTS, *wish],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    running.append(process.pid)
    begun.set()
    assert process.wait() == -signal.SIGKILL
    there = hub.weights()
    assert 3 <= len(there) < len(local)
    assert "README.md" not in hub.files()
    assert all(part.endswith(".partial") or "/" not in part for part in _folders(out))

    hub.source.bytes_sent = 0
    assert publish(ID, out, *SHARDS).code == 0

    assert hub.weights() == local
    assert names_in(out) == {"quantkit.json"}
    for sha256 in there.values():
        assert hub.store.received[sha256] == len(hub.store.objects[sha256])
    assert hub.source.bytes_sent < sum(file.stat().st_size for file in model.iterdir()) * 0.9


def test_a_folder_has_the_lineage_that_it_is_said_to_have(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    refused = publish(model, out, "--base-model", "no name")
    assert "'no name' is not a name for a repository" in refusal(refused)
    assert not out.exists()
    done = publish(model, out, "--base-model", "original/Model")
    assert done.code == 0, done.err
    assert "no base model" not in done.err
    assert b"\nbase_model: original/Model\n" in hub.files()["README.md"]


def _folders(out: Path) -> list[str]:
    return [path.name for path in out.iterdir() if path.is_dir()]


@pytest.mark.native  # for its time: the others go the same way
def test_a_hub_that_fails_loses_nothing(
    hub: Hub, local: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.publishing.upload.time.sleep", lambda _seconds: None)
    hub.store.fail("PUT", "/lfs/", 500)
    failed = publish(ID, tmp_path / "out", *SHARDS)
    assert failed.code == 1
    assert failed.err.count("Error: ") == 1
    assert "answered 500 for me/Model-GGUF" in failed.err
    assert not hub.weights()
    assert not artifacts_in(tmp_path / "out")
    hub.store.faults.clear()
    assert publish(ID, tmp_path / "out", *SHARDS).code == 0
    assert hub.weights() == local


@pytest.mark.native  # for its time: the others go the same way
def test_a_run_that_dies_just_before_the_end(
    hub: Hub, local: dict[str, str], tmp_path: Path
) -> None:
    """All is sent and in the manifest, and the card is still to come."""
    out = tmp_path / "out"
    with (
        patch("quantkit.building.engine.put_away", side_effect=RuntimeError("killed")),
        pytest.raises(RuntimeError, match="killed"),
    ):
        publish(ID, out, *SHARDS)
    assert hub.weights() == local
    assert "README.md" not in hub.files()
    asked = hub.weights_asked_for()

    assert publish(ID, out, *SHARDS).code == 0

    assert "README.md" in hub.files()
    assert hub.weights_asked_for() == asked
    assert names_in(out) == {"quantkit.json"}


def test_single_files_are_run_before_they_leave(hub: Hub, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = publish(model, out)
    assert done.code == 0, done.err
    assert set(hub.weights()) == {"Model-Q8_0.gguf", "Model-Q4_K_M.gguf"}
    assert names_in(out) == {"quantkit.json"}
    assert b"without a passing smoke test" not in hub.files()["README.md"]
    for entry in json.loads(hub.files()["quantkit.json"])["artifacts"].values():
        assert entry["smoke"]["ok"] is True


def test_what_stays_is_published_too(hub: Hub, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = quantkit("build", model, "-q", "q8_0", "-o", out, "--publish", REPO)
    assert done.code == 0, done.err
    assert hub.weights() == artifacts_in(out)


def refused(*options: object) -> str:
    return refusal(quantkit("build", *options))


def test_refusals_come_before_the_first_weight(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    wish: tuple[Any, ...] = (ID, "-q", "q8_0", *SHARDS, "-o", out, "--publish", REPO)
    wish = (*wish, "--delete-published")
    text = refused(*wish, "--max-disk", "1MB")
    assert "--max-disk 1 MB is less than the" in text
    assert "needs" not in text
    hub.store.repos[REPO]["something.bin"] = b"else"
    assert "exists and holds other files (something.bin)" in refused(*wish)
    hub.store.repos.clear()
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "may not write to me/Model-GGUF" in refused(*wish)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    card = model / "README.md"
    said = card.read_text()
    try:
        card.write_text("A model.\n")
        hub.source.commit = "f" * 40
        assert "license of the model" in refused(*wish)
        assert REPO not in hub.store.repos
    finally:
        card.write_text(said)
    assert hub.weights_asked_for() == 0
    assert not hub.store.received
    assert "is not a name for a repository" in refused(ID, "-q", "q8_0", "--publish", "me")
    alone = refused(ID, "-q", "q8_0", "--delete-published")
    assert "--delete-published belongs to --publish" in alone
    untested = (ID, "-q", "q8_0", "-o", out, "--publish", REPO, "--no-smoke")
    assert "leave out --no-smoke" in refused(*untested)
    mixed = (ID, "-q", "q8_0", "-q", "bnb-nf4", "-o", out, "--publish", REPO)
    assert "A repository holds one format" in refused(*mixed)
    bnb = (ID, "-q", "bnb-nf4", "-o", out, "--publish", REPO, "--delete-published")
    assert "--delete-published is for GGUF quants" in refused(*bnb)


@pytest.mark.native  # for its time
def test_nodes_of_a_cluster_write_what_leaves(
    hub: Hub, local: dict[str, str], tmp_path: Path
) -> None:
    """The driver sends and deletes shards that other processes have written."""
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "tests.building.hub_build",
        str(SLAB),
        str(PIECE),
        "0",
        "build",
    ]
    wish = ["--publish", REPO, "--delete-published", *SHARDS, "-o", str(out), "--cluster", "local"]
    built = subprocess.run(
        [*command, ID, *ARGUMENTS, *wish],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "Encoding on a Ray cluster of 2 processors." in built.stderr
    assert hub.weights() == local
    assert names_in(out) == {"quantkit.json"}
    assert hub.store.commits[REPO][-1].paths == ("README.md",)
