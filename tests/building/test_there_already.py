"""What already exists is compared with its manifest before it is taken for what is asked for."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from quantkit.building.work import Work, prepare
from quantkit.core.errors import OutputError
from quantkit.formats.layout import FileOptions
from quantkit.planning.quants import find_quants
from tests.building.builds import build_work, manifest_of, names_in
from tests.calibration.runs import text_file
from tests.cli.command import quantkit, refusal

WISHES = {
    "file": ("q8_0", None),
    "shards": ("q8_0", 600_000),
    "folder": ("bnb-int8", None),
}


@pytest.fixture(params=WISHES)
def work(request: pytest.FixtureRequest, mistral: Path) -> Work:
    quant, shard_size = WISHES[request.param]
    return prepare(mistral, find_quants([quant]), FileOptions(shard_size=shard_size))


def weights_in(out: Path) -> Path:
    """The last file of weights."""
    return max(f for f in out.rglob("*") if f.suffix in (".gguf", ".safetensors"))


def flip(path: Path, *, keep_time: bool) -> None:
    """Change one byte in the middle."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        [byte] = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns + (0 if keep_time else 1)))


def snapshot(out: Path) -> dict[str, tuple[bytes, int]]:
    files = {name: out / name for name in names_in(out)}
    return {name: (file.read_bytes(), file.stat().st_mtime_ns) for name, file in files.items()}


def test_what_is_as_it_was_built_is_taken(work: Work, tmp_path: Path) -> None:
    [first] = build_work(work, tmp_path)
    assert (first.fresh, first.recognized) == (True, "")
    before = snapshot(tmp_path)
    [again] = build_work(work, tmp_path)
    assert (again.fresh, again.recognized) == (False, "size and time as built")
    [again] = build_work(work, tmp_path, hashed=True)
    assert (again.fresh, again.recognized) == (False, "sha256 as built")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("change", ["touched", "older manifest"])
def test_where_the_time_tells_nothing_the_sha256_does(
    work: Work, tmp_path: Path, change: str
) -> None:
    build_work(work, tmp_path)
    if change == "touched":
        os.utime(weights_in(tmp_path), ns=(1, 1))
    else:
        path = tmp_path / "quantkit.json"
        manifest = json.loads(path.read_text())
        for entry in manifest["artifacts"].values():
            for file in entry["files"]:
                del file["modified_ns"]
        path.write_text(json.dumps(manifest))
    [again] = build_work(work, tmp_path)
    assert (again.fresh, again.recognized) == (False, "sha256 as built")


@pytest.mark.parametrize("change", ["byte", "shorter", "longer", "byte with its time"])
def test_what_was_changed_is_refused_and_left(work: Work, tmp_path: Path, change: str) -> None:
    """Only a change that leaves size and time alone needs ``--verify``."""
    build_work(work, tmp_path)
    changed = weights_in(tmp_path)
    options: dict[str, Any] = {}
    if change.startswith("byte"):
        flip(changed, keep_time=change != "byte")
        wanted = "has another sha256 than when it was built"
    else:
        size = changed.stat().st_size + (1 if change == "longer" else -1)
        os.truncate(changed, size)
        wanted = f"has {size:,} bytes instead of "
    if change == "byte with its time":
        [taken] = build_work(work, tmp_path)
        assert taken.recognized == "size and time as built"
        options = {"hashed": True}
    before = snapshot(tmp_path)
    with pytest.raises(OutputError) as caught:
        build_work(work, tmp_path, **options)
    sentence = str(caught.value)
    assert sentence.startswith(f"{changed} {wanted}")
    [layout] = work.layouts
    whole = tmp_path / (layout.folder or changed.name)
    assert f"delete {whole} and run the same command again" in sentence
    assert snapshot(tmp_path) == before


def test_one_file_of_several_that_is_lost_is_named(mistral: Path, tmp_path: Path) -> None:
    work = prepare(mistral, find_quants(["q8_0"]), FileOptions(shard_size=600_000))
    build_work(work, tmp_path)
    lost = weights_in(tmp_path)
    lost.unlink()
    with pytest.raises(OutputError, match=f"{lost} is missing"):
        build_work(work, tmp_path)


def test_what_was_deleted_is_built_anew(mistral: Path, tmp_path: Path) -> None:
    work = prepare(mistral, find_quants(["q8_0"]))
    [first] = build_work(work, tmp_path)
    data = first.path.read_bytes()
    first.path.unlink()
    [again] = build_work(work, tmp_path)
    assert again.fresh
    assert again.path.read_bytes() == data


@pytest.mark.parametrize("quant", ["q8_0", "gptq-int4"])
def test_the_command_says_how_it_knows(mistral: Path, tmp_path: Path, quant: str) -> None:
    wish: tuple[object, ...] = ("build", mistral, "-q", quant, "-o", tmp_path / "out", "--no-smoke")
    if quant == "gptq-int4":
        wish += ("--text", text_file(tmp_path), "--chunks", "2", "--context", "64")
    assert quantkit(*wish).code == 0
    again = quantkit(*wish, "--json")
    document = json.loads(again.out)
    assert document["artifacts"] == manifest_of(tmp_path / "out")
    assert list(document["was_there_already"].values()) == ["size and time as built"]
    assert "already, size and time as built; --verify" in quantkit(*wish).err
    assert "already, sha256 as built." in quantkit(*wish, "--verify").err
    changed = weights_in(tmp_path / "out")
    flip(changed, keep_time=True)
    assert quantkit(*wish).code == 0
    assert refusal(quantkit(*wish, "--verify")).startswith(str(changed))
