"""One build reads each source byte once, leaves its artifacts, and writes nowhere else."""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

import quantkit
from quantkit.building.artifact import Check
from quantkit.building.work import prepare
from quantkit.planning.quants import find_quants
from tests.building.builds import build_work, check_manifest, names_in

LADDER = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
ROOT = Path(quantkit.__file__).parents[1]
Watched = dict[str, Any]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in a folder, with size and modification time."""
    status = {str(path): path.stat() for path in [folder, *folder.rglob("*")]}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in status.items()}


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Empty folders that a program might write to."""
    return {name: tmp_path_factory.mktemp(name) for name in ("HOME", "TMPDIR", "cwd")}


@pytest.fixture(scope="module")
def ladder(
    mixtral: Path, surroundings: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Watched]:
    """The output folder of ``quantkit build --quant gguf-all``, smoke tests and all."""
    folder = tmp_path_factory.mktemp("ladder")
    before = {path: snapshot(path) for path in (mixtral, *surroundings.values())}
    environment = {
        **os.environ,
        **{name: str(surroundings[name]) for name in ("HOME", "TMPDIR")},
        # Compiled kernels go to the user's cache, the one thing that a first build leaves there.
        "NUMBA_CACHE_DIR": str(Path.home() / ".cache"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    report, out = folder / "report.json", folder / "out"
    watching = [sys.executable, "-m", "tests.building.watched", str(report)]
    done = subprocess.run(
        [*watching, "build", mixtral, "--quant", "gguf-all", "-o", out],
        cwd=surroundings["cwd"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {path: snapshot(path) for path in before} == before
    watched: Watched = json.loads(report.read_text())
    return out, watched


def test_each_source_byte_is_read_once(mixtral: Path, ladder: tuple[Path, Watched]) -> None:
    """By the build. Planning reads the headers before that, which is why each file opens twice."""
    _, watched = ladder
    ranges = defaultdict(list)
    for file, offset, n_bytes in watched["reads"]:
        ranges[file].append((offset, n_bytes))
    weights = sorted(str(file) for file in mixtral.glob("*.safetensors"))
    assert len(weights) == 3
    assert sorted(ranges) == weights
    for file, parts in ranges.items():
        end = 0
        for offset, n_bytes in sorted(parts):
            assert offset == end
            end = offset + n_bytes
        assert end == Path(file).stat().st_size
        assert parts == sorted(parts)  # from front to back
    opened: Counter[str] = Counter(watched["opened"])
    assert [opened[file] for file in weights] == [2, 2, 2]


def test_only_artifacts_and_manifest_are_left(ladder: tuple[Path, Watched]) -> None:
    out, _ = ladder
    names = [f"Model-8x593K-{quant}" for quant in LADDER]
    assert names_in(out) == {*(f"{name}.gguf" for name in names), "quantkit.json"}
    check_manifest(out, names)


def test_nothing_else_is_written(ladder: tuple[Path, Watched]) -> None:
    """That nothing was left elsewhere, the fixture has compared."""
    out, watched = ladder
    outside = {path for path in watched["changed"] if not Path(path).is_relative_to(out)}
    kernels = Path.home() / ".cache/quantkit/kernels"
    outside = {path for path in outside if not Path(path).is_relative_to(kernels)}
    assert outside <= {os.devnull, str(out.parent / "report.json")}
    assert any(path.startswith(str(out)) for path in watched["changed"])


def test_there_is_no_intermediate_file(mixtral: Path, tmp_path: Path) -> None:
    """While the first of seven artifacts is checked, all of them are there and nothing else is."""
    work = prepare(mixtral, find_quants(["gguf-all"]))
    out, seen = tmp_path / "out", []

    def look(_: Path) -> Check:
        seen.append({path.name: path.stat().st_size for path in out.iterdir()})
        return Check(ok=True, verdict="passed", record={})

    build_work(work, out, check=look)
    sizes = {f"{x.name}.gguf.partial": x.n_bytes for x in work.layouts}
    assert seen[0].pop(".quantkit-journal") < 10_000
    assert seen[0] == sizes


def test_reads_are_counted_where_they_happen(
    mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel hands over in a build is what the files hold, not a byte more."""
    real, counted = os.preadv, 0

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal counted
        count = real(fd, buffers, offset)
        counted += count
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    work = prepare(mistral, find_quants(["gguf-all"]))
    assert counted == 0
    build_work(work, tmp_path / "out")
    assert counted == (mistral / "model.safetensors").stat().st_size
