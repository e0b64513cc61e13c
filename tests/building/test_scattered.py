"""Builds on nodes that share no disk: each sees one of its own under the output folder's name."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.building.builds import manifest_of, names_in, sha256_of
from tests.building.test_cluster import SMALL, TINY, begun, command, run
from tests.ray_nodes import RayNodes, running

SHARDS = ("--shard-size", "1MiB")


def own_disk(disk: Path, folder: Path) -> list[str]:
    """What starts a command that sees one folder in the place of another."""
    disk.mkdir()
    script = f'mount --bind "{disk}" "{folder}" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


def shards_in(folder: Path) -> dict[str, str]:
    """The sha256 of finished shards, by path in the folder."""
    files = [file for file in folder.glob("*/*.gguf") if file.parent.suffix != ".partial"]
    return {str(file.relative_to(folder)): sha256_of(file) for file in files}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    tried = subprocess.run([*own_disk(tmp_path / "tried", folder), "true"], check=False)
    if tried.returncode != 0:
        pytest.skip("this user may not mount a folder over another")
    return folder


@pytest.fixture
def disks(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "a", tmp_path / "b"


@pytest.fixture
def nodes(out: Path, disks: tuple[Path, Path]) -> Iterator[RayNodes]:
    with running(*(own_disk(disk, out) for disk in disks)) as cluster:
        yield cluster


@pytest.mark.native  # for its time
def test_nodes_without_a_common_disk(
    nodes: RayNodes, out: Path, disks: tuple[Path, Path], tmp_path: Path
) -> None:
    expected = run(nodes, command(TINY, tmp_path / "threads", "q8_0", "q4_k_m", "q6_k"), *SHARDS)
    assert expected.returncode == 0, expected.stderr
    shards = shards_in(tmp_path / "threads")

    whole = run(nodes, command(TINY, out, "q8_0"), "--cluster", "auto")
    assert whole.returncode == 2
    assert "Not all nodes of the cluster share" in whole.stderr
    assert "--shard-size" in whole.stderr
    assert [names_in(folder) for folder in (out, *disks)] == [set(), set(), set()]

    hidden = out / "model"  # under what the nodes see something else
    shutil.copytree(TINY, hidden)
    blind = run(nodes, command(hidden, tmp_path / "shared", "q8_0"), "--cluster", "auto")
    assert blind.returncode == 2
    assert f"does not see {hidden}/model-00001-of-00002.safetensors as it" in blind.stderr
    assert names_in(tmp_path / "shared") == set()
    shutil.rmtree(hidden)

    two = ("q8_0", "q4_k_m")
    built = run(nodes, command(TINY, out, *two), "--cluster", "auto", *SHARDS)
    assert built.returncode == 0, built.stderr
    found = [shards_in(disk) for disk in disks]
    assert all(found)
    assert not found[0].keys() & found[1].keys()
    merged = found[0] | found[1]
    assert merged == {name: sha for name, sha in shards.items() if "Q6_K" not in name}
    assert names_in(out) == {"quantkit.json"}
    listed = [file for entry in manifest_of(out).values() for file in entry["files"]]
    assert {file["name"]: file["sha256"] for file in listed} == merged
    assert all(file["node"] for file in listed)

    again = run(nodes, command(TINY, out, *two), "--cluster", "auto", *SHARDS)
    assert again.returncode == 0, again.stderr
    assert "Encoding" not in again.stderr

    one = command(TINY, out, "q6_k", start=SMALL)
    with begun(nodes, [*one, *SHARDS], out) as process:
        nodes.kill(1)
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate()
    assert process.returncode == 0, said
    here = shards_in(disks[0])
    assert here == found[0] | {name: sha for name, sha in shards.items() if "Q6_K" in name}
