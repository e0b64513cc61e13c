"""What llama.cpp's converter describes, straight from the Hub: as from a folder, each byte once."""

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from quantkit.building.artifact import Progress
from quantkit.building.kept import KeptSource
from quantkit.building.manifest import find_finished
from quantkit.building.work import Work, prepare, with_reader
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.open import open_checkpoint, open_source
from quantkit.core.errors import Interrupted
from quantkit.planning.quants import find_quants
from tests.building.builds import artifacts_in, build_work, manifest_of, names_in, small_slabs
from tests.hub_server import COMMIT, HubServer, client_of, serve
from tests.large_experts import large_experts

pytestmark = pytest.mark.usefixtures("shared_converter")

QUANTS = ("q8_0", "q4_k_m")
ID = "someone/Model"
SLAB = 2**14
NEEDED = {
    "README.md",
    "config.json",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
OTHERS = ("modeling_model.py", "picture.png", "onnx/model.onnx", "deep/er/config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer of experts in FP8, in two files, in a repository that has other things, too."""
    folder = tmp_path_factory.mktemp("hub") / "Model"
    large_experts(folder, hidden=256, width=256, experts=4, fp8=True, shard_size=10**6)
    assert len(list(folder.glob("*.safetensors"))) == 2
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    (folder / "preprocessor_config.json").write_text("{}")
    for name in OTHERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"raise SystemExit")
    return folder


@dataclass(frozen=True)
class Local:
    """What a local build makes of it: where, of what, and the sha256 of its files."""

    out: Path
    work: Work
    sums: dict[str, str]


@pytest.fixture(scope="module")
def local(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Local:
    out = tmp_path_factory.mktemp("local")
    work = work_of(open_checkpoint(folder))
    build_work(work, out)
    return Local(out, work, artifacts_in(out))


@pytest.fixture
def hub(folder: Path, tmp_path: Path) -> Iterator[HubServer]:
    with (
        serve(HubServer(folder, repo_id=ID)) as server,
        client_of(server, tmp_path / "cache"),
        small_slabs(SLAB),
    ):
        yield server


def opened() -> Checkpoint:
    checkpoint = open_source(ID)
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.description is not None
    return checkpoint


def work_of(checkpoint: Checkpoint, kept: KeptSource | None = None) -> Work:
    return with_reader(prepare(checkpoint, find_quants(QUANTS)), kept)


def fetched(server: HubServer) -> set[str]:
    """Files of the repository that anything was read of."""
    paths = [path for method, path, _ in server.requests if method == "GET"]
    return {path.partition(f"/{COMMIT}/")[2] for path in paths} - {""}


def sent(server: HubServer, start: int) -> dict[str, int]:
    """Bytes of weights that were asked for since some request, by file."""
    counts: dict[str, int] = {}
    for method, path, part in server.requests[start:]:
        if method == "GET" and path.endswith(".safetensors") and part:
            first, last = map(int, part.removeprefix("bytes=").split("-"))
            name = path.rpartition("/")[2]
            counts[name] = counts.get(name, 0) + last + 1 - first
    return counts


def test_the_same_bytes_and_what_is_kept_opens_again(
    hub: HubServer, folder: Path, local: Local, tmp_path: Path
) -> None:
    checkpoint = opened()
    weights = {file.name: file.stat().st_size for file in folder.glob("*.safetensors")}
    kept = KeptSource(tmp_path / "Model", checkpoint)
    kept.prepare()
    before = len(hub.requests)
    build_work(work_of(checkpoint, kept), tmp_path / "out")
    assert artifacts_in(tmp_path / "out") == local.sums
    assert sent(hub, before) == weights
    assert fetched(hub) == NEEDED | weights.keys()
    source = next(iter(manifest_of(tmp_path / "out").values()))["source"]
    assert (source["repo_id"], source["commit"], source["family"]) == (ID, COMMIT, "qwen3moe")
    assert "llama-cpp-python" in source["described_by"]
    assert {file["name"] for file in source["settings"]} == NEEDED

    assert names_in(kept.folder) == NEEDED | weights.keys()
    assert all((kept.folder / n).read_bytes() == (folder / n).read_bytes() for n in weights)
    shutil.rmtree(tmp_path / "cache")
    asked = len(hub.requests)
    build_work(work_of(open_checkpoint(kept.folder)), tmp_path / "again")
    assert artifacts_in(tmp_path / "again") == local.sums
    assert len(hub.requests) == asked


def test_an_interrupted_build_goes_on(
    hub: HubServer, folder: Path, local: Local, tmp_path: Path
) -> None:
    left = 30

    def report(_: Progress) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        build_work(work_of(opened()), tmp_path, report=report)
    assert not artifacts_in(tmp_path)
    checkpoint, before = opened(), len(hub.requests)
    build_work(work_of(checkpoint), tmp_path)
    assert artifacts_in(tmp_path) == local.sums
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert 0 < sum(sent(hub, before).values()) < weights


def test_another_machine_finds_the_small_files_itself(hub: HubServer, tmp_path: Path) -> None:
    """As a node of a cluster does, whose cache is not this one's: rows from what was pickled."""
    checkpoint = opened()
    read_rows = checkpoint.read_rows
    assert read_rows is not None
    name = "blk.0.ffn_down_exps.weight"
    wanted = read_rows(name, 256, 16).tobytes()
    data = pickle.dumps(read_rows)
    shutil.rmtree(tmp_path / "cache")
    assert not os.path.lexists(checkpoint.path)
    there = pickle.loads(data)  # noqa: S301 - ours
    try:
        assert there(name, 256, 16).tobytes() == wanted
    finally:
        there.close()
    assert not fetched(hub).intersection(OTHERS)


def test_another_converter_makes_another_artifact(local: Local, tmp_path: Path) -> None:
    """What one of another version described is not taken for finished."""
    out = tmp_path / "out"
    shutil.copytree(local.out, out)
    [layout, _] = local.work.layouts
    assert find_finished(out, local.work, layout) is not None
    manifest = json.loads((out / "quantkit.json").read_text())
    for entry in manifest["artifacts"].values():
        entry["source"]["described_by"] = "llama.cpp of another day"
    (out / "quantkit.json").write_text(json.dumps(manifest))
    assert find_finished(out, local.work, layout) is None
