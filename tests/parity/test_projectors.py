"""Projectors have the converter's bytes, in its types, and are built as anything else is."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantkit.building.artifact import Artifact
from quantkit.building.projector import KINDS, knowing, prepare_projector, projector_bytes
from quantkit.building.source import read_exactly
from quantkit.building.work import Work, prepare
from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.errors import ConverterEndedError
from quantkit.planning.quants import find_quants
from quantkit.verification.hollow import HeaderOnly
from quantkit.verification.projector import smoke_projector
from tests.architectures.ggufs import small_checkpoints, stored_checkpoints, stored_ggufs
from tests.architectures.stored import STORED
from tests.architectures.unpack import read_safetensors
from tests.building.builds import build_work
from tests.cli.command import Outcome, quantkit, refusal
from tests.hub_server import HubServer, client_of, serve
from tests.safetensors_writer import to_bf16, write_safetensors

pytestmark = pytest.mark.native

WITH_PROJECTOR = [name for name, stored in STORED.items() if stored.projector]
# Each in one type, in turn, and one in all. All 36 were the same on 2026-11-27.
PAIRS = [(name, tuple(KINDS)[place % len(KINDS)]) for place, name in enumerate(WITH_PROJECTOR)]
PAIRS += [("gemma3-vision", kind) for kind in KINDS if ("gemma3-vision", kind) not in PAIRS]
# As small as these are, llama.cpp does not take them: it wants 1500 positions of sound, and
# features as wide as it knows them.
NOT_LOADED = {"gemma4-vision", "mistral3-vision", "qwen2-audio", "voxtral"}
SEES, HEARS = "qwen3vl", "qwen2-audio"
Q8 = ("-q", "q8_0", "--no-smoke")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return stored_checkpoints(tmp_path_factory, WITH_PROJECTOR)


@pytest.fixture(scope="module")
def texts(checkpoints: dict[str, Path]) -> Iterator[dict[str, Work]]:
    """The works on the models themselves, as they are asked for."""
    known = _Texts(checkpoints)
    yield known
    known.close()


class _Texts(dict[str, Work]):
    def __init__(self, checkpoints: dict[str, Path]) -> None:
        super().__init__()
        self._checkpoints = checkpoints

    def __missing__(self, name: str) -> Work:
        self[name] = prepare(open_checkpoint(self._checkpoints[name]), find_quants(["q8_0"]))
        return self[name]

    def close(self) -> None:
        for work in self.values():
            rows_of(work).close()


def rows_of(work: Work) -> Any:
    assert work.checkpoint.description is not None
    return work.checkpoint.description.rows


def built(work: Work, out: Path) -> Artifact:
    [artifact] = build_work(work, out)
    rows_of(work).close()
    return artifact


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_bytes_are_the_converters(
    name: str,
    kind: str,
    texts: dict[str, Work],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    expected = stored_ggufs(tmp_path_factory, WITH_PROJECTOR, kind, mmproj=True)[name]
    found = prepare_projector(texts[name], kind)
    assert found.work is not None, found.missing

    artifact = built(found.work, tmp_path)

    assert artifact.path.name == f"mmproj-{texts[name].base_name}-{kind.upper()}.gguf"
    assert artifact.path.read_bytes() == expected.read_bytes()
    if name not in NOT_LOADED:
        [model] = texts[name].layouts
        hollow = [HeaderOnly(file.name, file.header, file.n_bytes) for file in model.files]
        result = smoke_projector(artifact.path, hollow, takes=artifact.entry["takes"], threads=1)
        assert result.ok, result.verdict


def test_llama_cpp_wants_the_model_that_it_is_for(
    texts: dict[str, Work], tmp_path_factory: pytest.TempPathFactory
) -> None:
    projector = stored_ggufs(tmp_path_factory, WITH_PROJECTOR, "f16", mmproj=True)["llama4-vision"]
    [model] = texts[SEES].layouts
    hollow = [HeaderOnly(file.name, file.header, file.n_bytes) for file in model.files]

    assert smoke_projector(projector, threads=1).ok
    result = smoke_projector(projector, hollow, threads=1)
    assert "mismatch between text model (n_embd = 512) and mmproj (n_embd = 256)" in result.verdict
    result = smoke_projector(projector, takes=["vision", "audio"], threads=1)
    assert result.verdict == "llama.cpp finds no audio in it."


def test_only_its_own_tensors_are_read(
    texts: dict[str, Work],
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the source's sha256 is known from the model's own files."""
    n_read = []

    def counting(fd: int, n_bytes: int, offset: int, path: Path) -> Any:
        n_read.append(n_bytes)
        return read_exactly(fd, n_bytes, offset, path)

    [model] = build_work(texts["llama4-vision"], tmp_path)
    found = prepare_projector(texts["llama4-vision"], "f16").work
    assert found is not None
    monkeypatch.setattr("quantkit.building.source.read_exactly", counting)

    artifact = built(knowing(found, [model.entry]), tmp_path)

    assert projector_bytes(texts["llama4-vision"].checkpoint) == found.layouts[0].plan.n_bytes
    tower = sum(tensor.n_bytes for tensor in found.checkpoint.tensors.values())
    size = (checkpoints["llama4-vision"] / "model.safetensors").stat().st_size
    assert sum(n_read) == tower < size / 2
    assert artifact.entry["source"]["weights"] == model.entry["source"]["weights"]


def run(*arguments: object) -> Outcome:
    outcome = quantkit("build", *arguments)
    assert outcome.code == 0, outcome
    return outcome


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_build_writes_it_beside_the_quants(
    checkpoints: dict[str, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = stored_ggufs(tmp_path_factory, WITH_PROJECTOR, "f16", mmproj=True)[SEES]
    out = tmp_path / "out"
    planned = json.loads(run(checkpoints[SEES], *Q8, "-o", out, "--dry-run", "--json").out)
    outcome = run(checkpoints[SEES], *Q8, "-o", out)
    [part] = [path for path in out.iterdir() if path.name.startswith("mmproj-")]
    entry = json.loads((out / "quantkit.json").read_text())["artifacts"][part.stem]

    assert part.read_bytes() == expected.read_bytes()
    assert names_in(out) == {part.name, part.name[7:-8] + "Q8_0.gguf", "quantkit.json"}
    assert f"{part.name}: its part for vision, " in outcome.err
    assert entry["takes"] == ["vision"]
    shown = planned["artifacts"][-1]
    assert shown["name"] == part.stem
    assert (shown["bytes"], shown["plan_sha256"]) == (part.stat().st_size, entry["plan_sha256"])

    again = run(checkpoints[SEES], *Q8, "-o", out, "--json")
    assert set(json.loads(again.out)["was_there_already"]) == {part.stem, part.name[7:-8] + "Q8_0"}
    run(checkpoints[SEES], *Q8, "-o", out, "--mmproj", "bf16")
    assert part.name.replace("F16", "BF16") in names_in(out)
    without = tmp_path / "without"
    run(checkpoints[SEES], *Q8, "-o", without, "--mmproj", "none")
    assert names_in(without) == {part.name[7:-8] + "Q8_0.gguf", "quantkit.json"}
    assert json.loads(quantkit("inspect", part, "--json").out)["takes"] == ["vision"]
    assert [a["name"] for a in json.loads(quantkit("inspect", out, "--json").out)["artifacts"]] == [
        part.name[7:-8] + "Q8_0.gguf",
        part.name,
        part.name.replace("F16", "BF16"),
    ]
    assert quantkit("verify", out).code == 0


KILLED = """
import sys
from unittest.mock import patch
from quantkit.building.journal import Journal
from tests.building.builds import small_slabs
from tests.building.journaled import kill_itself
from tests.cli.command import quantkit

real = Journal.record

def record(self, *arguments):
    real(self, *arguments)
    if any(name.startswith("mmproj-") for name in self._artifacts) and len(self.finished) >= 5:
        kill_itself()

with patch.object(Journal, "record", record), small_slabs(2**13):
    outcome = quantkit("build", *sys.argv[1:])
sys.exit(repr(outcome))
"""


def test_killed_in_the_middle_of_it(
    checkpoints: dict[str, Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from quantkit.building.journal import Journal
    from tests.building.builds import small_slabs

    expected = stored_ggufs(tmp_path_factory, WITH_PROJECTOR, "f16", mmproj=True)["smolvlm"]
    command = (checkpoints["smolvlm"], *Q8, "--jobs", "1", "-o", tmp_path)
    died = subprocess.run([sys.executable, "-c", KILLED, *map(str, command)], check=False)
    assert died.returncode == -signal.SIGKILL
    left = names_in(tmp_path)
    assert len(left) == 4
    [partial] = [name for name in left if name.startswith("mmproj-")]
    assert partial.endswith(".gguf.partial")
    assert ".quantkit-journal" in left
    [model] = [name for name in left if name.endswith(".gguf")]
    before = (tmp_path / model).stat().st_mtime_ns

    resumed = []
    real = Journal.resume

    def resume(self: Journal) -> None:
        real(self)
        resumed.append(len(self.finished))

    monkeypatch.setattr(Journal, "resume", resume)
    with small_slabs(2**13):
        run(*command)

    assert resumed[-1] >= 5
    part = partial.removesuffix(".partial")
    assert names_in(tmp_path) == {model, part, "quantkit.json"}
    assert (tmp_path / part).read_bytes() == expected.read_bytes()
    assert (tmp_path / model).stat().st_mtime_ns == before


def test_one_that_llama_cpp_does_not_load_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Before a weight is read, and the rest can be built without it."""
    command = ("build", checkpoints[HEARS], *Q8, "-o", tmp_path / "out")
    for option in ("--dry-run", "--no-smoke"):
        said = refusal(quantkit(*command, option))
        assert "crashed with SIGABRT while loading the projector" in said
        assert "or build it without that part (--mmproj none)" in said
        assert not (tmp_path / "out").exists()
    run(*command[1:], "--mmproj", "none")


def test_tensors_that_the_converter_does_not_miss(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """llama.cpp misses some of them, and computes without the others."""
    out = tmp_path / "out"
    folder = without(checkpoints[SEES], tmp_path / "one", "visual.merger.linear_fc2.weight")
    said = refusal(quantkit("build", folder, *Q8, "-o", out))
    assert said.startswith(f"The vision or audio part of {folder} would become a GGUF that")
    assert "mm.2.weight" in said
    assert not out.exists()

    folder = without(checkpoints[SEES], tmp_path / "other", "visual.blocks.0.norm2.weight")
    outcome = run(folder, *Q8, "-o", out)
    said = "The checkpoint has nothing for v.blk.0.ln2.weight, which other layers have; llama.cpp "
    assert said in outcome.err
    entries = json.loads((out / "quantkit.json").read_text())["artifacts"]
    [remarks] = [entry["remarks"] for name, entry in entries.items() if name.startswith("mmproj")]
    assert any(remark.startswith(said) for remark in remarks)


def without(folder: Path, target: Path, name: str) -> Path:
    """A copy of a checkpoint that lacks a tensor."""
    shutil.copytree(folder, target)
    weights = read_safetensors(target / "model.safetensors")
    kept = {n: to_bf16(values) for n, values in weights.items() if not n.endswith(name)}
    assert len(kept) == len(weights) - 1
    write_safetensors(target / "model.safetensors", kept)
    return target


def test_one_that_does_not_pass_its_smoke_test_is_rejected(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.api.passes.require_loadable", lambda *_: None)
    outcome = quantkit("build", checkpoints[HEARS], "-q", "q8_0", "-o", tmp_path, "--json")

    assert outcome.code == 1
    [part] = [name for name in names_in(tmp_path) if name.startswith("mmproj-")]
    assert part.endswith("-F16.gguf.rejected")
    assert "llama.cpp crashed with SIGABRT while loading the projector" in outcome.err
    artifacts = json.loads(outcome.out)["artifacts"]
    assert artifacts[part.removesuffix(".gguf.rejected")]["takes"] == ["audio"]


def test_from_the_hub_it_costs_its_own_bytes(
    checkpoints: dict[str, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = stored_ggufs(tmp_path_factory, WITH_PROJECTOR, "f16", mmproj=True)["llama4-vision"]
    out = tmp_path / "out"
    with (
        serve(HubServer(checkpoints["llama4-vision"])) as server,
        client_of(server, tmp_path / "cache"),
    ):
        run("someone/Model", *Q8, "-o", out)
        asked = server.ranges_of("model.safetensors")
        sent = server.bytes_sent
    [part] = [path for path in out.iterdir() if path.name.startswith("mmproj-")]
    entry = json.loads((out / "quantkit.json").read_text())["artifacts"][part.stem]
    size = (checkpoints["llama4-vision"] / "model.safetensors").stat().st_size
    small = sum(
        path.stat().st_size
        for path in checkpoints["llama4-vision"].iterdir()
        if path.suffix != ".safetensors"
    )

    # Its name is the repository's, which is in its keys; all else is the same.
    assert part.stat().st_size == pytest.approx(expected.stat().st_size, abs=100)
    assert entry["source"]["weights"][0]["verified"]
    assert len(asked) > 2
    assert sent < size + part.stat().st_size * 1.2 + small + 2**16


def test_what_cannot_be_described_is_missing_and_said(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoints["llama4-vision"], folder)
    (folder / "preprocessor_config.json").unlink()

    outcome = run(folder, *Q8, "-o", tmp_path / "out")

    said = "What is built takes text alone, because the vision or audio part is missing: "
    assert said in outcome.err
    [entry] = json.loads((tmp_path / "out" / "quantkit.json").read_text())["artifacts"].values()
    [remark] = [remark for remark in entry["remarks"] if remark.startswith(said)]
    assert "has no preprocessor_config.json, which says how" in remark
    sentence = refusal(quantkit("build", folder, *Q8, "-o", tmp_path / "x", "--mmproj", "f16"))
    assert "Leave out --mmproj to build the rest." in sentence


def test_a_converter_that_is_killed_leaves_none_out(
    texts: dict[str, Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if there were nothing to see."""
    monkeypatch.setattr("quantkit.checkpoint.converter.process.sys.executable", "/bin/false")
    with pytest.raises(ConverterEndedError, match=r"ended without an answer \(status 1\)"):
        prepare_projector(texts["smolvlm"], "f16")


def test_a_model_whose_tower_was_taken_out(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """As of finetunes of the text part alone, whose config.json still speaks of the other."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoints[SEES], folder)
    weights = read_safetensors(folder / "model.safetensors")
    kept = {name: to_bf16(values) for name, values in weights.items() if "visual" not in name}
    assert 0 < len(kept) < len(weights)
    write_safetensors(folder / "model.safetensors", kept)

    outcome = run(folder, *Q8, "-o", tmp_path / "out")

    assert "audio part" not in outcome.err
    assert len(names_in(tmp_path / "out")) == 2


def test_a_model_without_one(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = small_checkpoints(tmp_path_factory, ["qwen3"])["qwen3"]
    assert len(names_in_after(run(folder, *Q8, "-o", tmp_path / "out"), tmp_path / "out")) == 2
    sentence = refusal(quantkit("build", folder, *Q8, "-o", tmp_path / "x", "--mmproj", "bf16"))
    assert sentence.endswith(f"and {folder} has none; leave it out.")


def names_in_after(_: Outcome, folder: Path) -> set[str]:
    return names_in(folder)
