"""A GGUF as a source that lies on the Hub, or in shards: the same quants as of the one file here.

The server is ours (``tests.hub_server``); the client is huggingface_hub's.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import quantkit as package
from quantkit.building.units import cut_units
from quantkit.building.work import prepare
from quantkit.planning.quants import find_quants
from tests.building.builds import artifacts_in, manifest_of, sha256_of, small_slabs
from tests.building.test_hub import units_in
from tests.cli.command import quantkit, refusal
from tests.gguf_sources import unquantized
from tests.hub_server import COMMIT, HubServer, client_of, serve
from tests.random_checkpoints import random_checkpoint

ROOT = Path(package.__file__).parents[1]
SLAB = 2**16
PIECE = 2**17
REPO = "someone/Model-GGUF"
SUBFOLDER = "BF16"
QUANTS = ("-q", "q8_0", "-q", "q4_k_m", "--jobs", "2", "--no-smoke")

Start = Callable[..., HubServer]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a GGUF of 4 MB, whole at its top and split in a folder."""
    made = tmp_path_factory.mktemp("gguf")
    model = random_checkpoint(made / "Model", "mixtral", num_hidden_layers=1)
    folder = made / "repo"
    unquantized(model, folder / SUBFOLDER, name="Model", shard_size=2_200_000)
    unquantized(model, made / "whole", name="Model").rename(folder / "Model-BF16.gguf")
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: maker/Model\n---\n")
    return folder


@pytest.fixture(scope="module")
def shards(repo: Path) -> list[Path]:
    found = sorted((repo / SUBFOLDER).iterdir())
    assert len(found) >= 2
    return found


@pytest.fixture(scope="module")
def local(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sha256 of what is made of the one file here."""
    out = tmp_path_factory.mktemp("local")
    assert quantkit("build", repo / "Model-BF16.gguf", *QUANTS, "-o", out).code == 0
    return artifacts_in(out)


@pytest.fixture
def hub(repo: Path, tmp_path: Path) -> Iterator[Start]:
    """Serves the repository to huggingface_hub, in small pieces."""
    with ExitStack() as stack:
        stack.enter_context(small_slabs(SLAB))
        stack.enter_context(patch("quantkit.checkpoint.ahead._LARGEST_PIECE", PIECE))

        def start(**settings: Any) -> HubServer:
            server = stack.enter_context(serve(HubServer(repo, repo_id=REPO, **settings)))
            stack.enter_context(client_of(server, tmp_path / "cache"))
            return server

        yield start


def test_a_file_of_the_hub_is_read_by_range_and_each_byte_once(
    hub: Start, repo: Path, local: dict[str, str], tmp_path: Path
) -> None:
    server = hub()

    done = quantkit("build", f"{REPO}/Model-BF16.gguf", *QUANTS, "-o", tmp_path / "out")

    assert done.code == 0, done.err
    assert artifacts_in(tmp_path / "out") == local
    size = (repo / "Model-BF16.gguf").stat().st_size
    header = 2**20  # what is read first, to see how long the header is
    assert server.bytes_sent <= size + header + 2**16
    source = manifest_of(tmp_path / "out")["Model-Q8_0"]["source"]
    assert (source["repo_id"], source["commit"]) == (REPO, COMMIT)
    assert source["weights"] == [
        {
            "name": "Model-BF16.gguf",
            "bytes": size,
            "sha256": sha256_of(repo / "Model-BF16.gguf"),
            "verified": True,
        }
    ]
    assert source["settings"] == []


def test_shards_in_a_folder_of_the_repository(
    hub: Start, shards: list[Path], local: dict[str, str], tmp_path: Path
) -> None:
    hub()
    place = f"{REPO}/{SUBFOLDER}/{shards[0].name}"

    done = quantkit("build", place, *QUANTS, "-o", tmp_path / "out")

    assert done.code == 0, done.err
    assert artifacts_in(tmp_path / "out") == local
    source = manifest_of(tmp_path / "out")["Model-Q8_0"]["source"]
    assert [weight["name"] for weight in source["weights"]] == [
        f"{SUBFOLDER}/{shard.name}" for shard in shards
    ]
    assert all(weight["verified"] for weight in source["weights"])
    again = quantkit("build", place, *QUANTS, "-o", tmp_path / "out")
    assert "Model-Q8_0.gguf was there already" in again.err


def test_a_killed_build_goes_on_with_what_is_missing(
    hub: Start, shards: list[Path], local: dict[str, str], tmp_path: Path
) -> None:
    server = hub()
    out = tmp_path / "out"
    place = f"{REPO}/{SUBFOLDER}/{shards[0].name}"
    command = [sys.executable, "-m", "tests.building.hub_build", str(SLAB), str(PIECE), "30"]
    killed = subprocess.run(
        [*command, "build", place, *QUANTS, "-o", out],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not artifacts_in(out)
    work = prepare(shards[0], find_quants(["q8_0", "q4_k_m"]))
    targets = [tensor.target for tensor in work.layouts[0].plan.tensors]
    units = cut_units(targets, work.checkpoint.tensors)
    finished = units_in(out / ".quantkit-journal")
    assert len(finished) >= 30
    server.bytes_sent = 0

    done = quantkit("build", place, *QUANTS, "-o", out)

    assert done.code == 0, done.err
    assert artifacts_in(out) == local
    done_before = sum(units[index].n_bytes for index in finished)
    assert server.bytes_sent < sum(f.stat().st_size for f in shards) - done_before + 200_000


def test_another_version_of_a_file_is_another_source(
    hub: Start, repo: Path, local: dict[str, str], tmp_path: Path
) -> None:
    server = hub()
    place, out = f"{REPO}/Model-BF16.gguf", tmp_path / "out"
    assert quantkit("build", place, *QUANTS, "-o", out).code == 0
    server.commit = "f" * 40
    done = quantkit("build", place, *QUANTS, "-o", out)
    assert "Model-Q8_0.gguf was there already" in done.err  # the same file in a later commit

    before = (repo / "Model-BF16.gguf").read_bytes()
    try:
        (repo / "Model-BF16.gguf").write_bytes(before[:-2] + b"\1\1")
        server.commit = "e" * 40
        done = quantkit("build", place, *QUANTS, "-o", out)
    finally:
        (repo / "Model-BF16.gguf").write_bytes(before)
    assert "was not built from this checkpoint" in refusal(done)
    assert artifacts_in(out) == local


def test_what_the_hub_sends_must_be_what_it_lists(
    hub: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub()
    wrong = {"sha256": "ab" * 32, "size": 1, "pointerSize": 134}
    monkeypatch.setattr("tests.hub_server._lfs", lambda _path: {"lfs": wrong})
    refused = refusal(quantkit("build", f"{REPO}/Model-BF16.gguf", *QUANTS, "-o", tmp_path / "out"))
    assert refused.startswith("The sha256 of Model-BF16.gguf of someone/Model-GGUF at ")
    assert "is not the one that the Hub lists" in refused
    assert not artifacts_in(tmp_path / "out")


def test_keep_source_stores_the_files_and_nothing_else(
    hub: Start, shards: list[Path], local: dict[str, str], tmp_path: Path
) -> None:
    server = hub()
    kept, place = tmp_path / "kept", f"{REPO}/{SUBFOLDER}/{shards[0].name}"
    keep = ("--keep-source", kept)

    done = quantkit("build", place, *QUANTS, "-o", tmp_path / "out", *keep)

    assert done.code == 0, done.err
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == {
        shard.name: shard.read_bytes() for shard in shards
    }
    server.bytes_sent = 0
    assert quantkit("build", place, *QUANTS, "-o", tmp_path / "second", *keep).code == 0
    assert server.bytes_sent < 2 * 10**4  # headers are known, weights are here
    # What is kept is the same source under any path.
    again = quantkit("build", kept / shards[0].name, *QUANTS, "-o", tmp_path / "out")
    assert "Model-Q4_K_M.gguf was there already" in again.err
    assert artifacts_in(tmp_path / "out") == artifacts_in(tmp_path / "second") == local


def test_offline_the_cache_is_the_source(
    hub: Start,
    shards: list[Path],
    local: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import hf_hub_download

    server = hub()
    for shard in shards[:-1]:
        hf_hub_download(REPO, f"{SUBFOLDER}/{shard.name}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    place = f"{REPO}/{SUBFOLDER}/{shards[0].name}"
    lacking = refusal(quantkit("build", place, *QUANTS, "-o", tmp_path / "out"))
    assert lacking == (
        f"HF_HUB_OFFLINE is set, and {SUBFOLDER}/{shards[-1].name} of {REPO} is not in the Hub's "
        "cache; unset it, or give a local file."
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hf_hub_download(REPO, f"{SUBFOLDER}/{shards[-1].name}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    server.requests.clear()

    done = quantkit("build", place, *QUANTS, "-o", tmp_path / "out")

    assert done.code == 0, done.err
    assert not server.requests
    assert artifacts_in(tmp_path / "out") == local


def test_shards_here_are_one_source(
    shards: list[Path], local: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = quantkit("build", shards[0], *QUANTS, "-o", out)
    assert done.code == 0, done.err
    assert artifacts_in(out) == local
    weights = manifest_of(out)["Model-Q8_0"]["source"]["weights"]
    assert [(w["name"], w["sha256"]) for w in weights] == [(s.name, sha256_of(s)) for s in shards]
    again = quantkit("build", shards[0], *QUANTS, "-o", out)
    assert "Model-Q8_0.gguf was there already" in again.err
    # Copied elsewhere, they are the same: by their sha256.
    copies = [Path(shutil.copy(shard, tmp_path / shard.name)) for shard in shards]
    assert "was there already" in quantkit("build", copies[0], *QUANTS, "-o", out).err

    data = copies[-1].read_bytes()
    copies[-1].write_bytes(data[:-2] + b"\1\1")
    changed = quantkit("build", copies[0], *QUANTS, "-o", out)
    assert "was not built from this checkpoint" in refusal(changed)


def test_shards_must_be_all_there_and_of_one_model(shards: list[Path], tmp_path: Path) -> None:
    def refused(first: Path) -> str:
        return refusal(quantkit("build", first, *QUANTS, "-o", tmp_path / "out"))

    assert refused(shards[1]) == (
        f"{shards[1]} is shard 2 of {len(shards)}; give the first one, {shards[0].name}."
    )
    alone = Path(shutil.copy(shards[0], tmp_path / shards[0].name))
    missing = refused(alone)
    assert missing.startswith(f"{alone.with_name(shards[1].name)} ")
    for shard in shards[1:]:  # the first one again under the others' names
        shutil.copy(shards[0], tmp_path / shard.name)
    assert "says that it is shard 0 of 4 (counted from 0)" in refused(alone)
    other = random_checkpoint(tmp_path / "Other", "mixtral")  # twice the layers
    first = unquantized(other, tmp_path / "split", name="Other", shard_size=4_300_000)
    theirs = sorted(first.parent.iterdir())
    assert len(theirs) == len(shards)
    for shard, their in zip(shards[1:], theirs[1:], strict=True):
        shutil.copy(their, tmp_path / shard.name)
    assert "tensors in all shards, and there are" in refused(alone)
