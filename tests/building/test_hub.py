"""A build straight from the Hub: the same bytes as a local one, each of them sent once.

The server is ours (``tests.hub_server``); the client is huggingface_hub's.
"""

import json
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
from quantkit.checkpoint.hub import open_hub_checkpoint
from quantkit.core.errors import CheckpointError, SourceChangedError
from quantkit.planning.quants import find_quants
from tests.building.builds import (
    artifacts_in,
    build,
    build_work,
    manifest_of,
    names_in,
    sha256_of,
    small_slabs,
)
from tests.cli.command import quantkit, refusal
from tests.hub_server import COMMIT, HubServer, client_of, serve
from tests.random_checkpoints import random_checkpoint

ROOT = Path(package.__file__).parents[1]
QUANTS = ("q8_0", "q4_k_m")
SLAB = 2**16
PIECE = 2**17
ID = "someone/Model"
WEIGHTS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
TOKEN = "hf_secretsecretsecretsecret"  # noqa: S105 - our own server's

Start = Callable[..., HubServer]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral of 16 MB in three files, under the name that it has on the Hub."""
    folder = tmp_path_factory.mktemp("hub") / "Model"
    return random_checkpoint(folder, "mixtral", shards=3, intermediate_size=1024)


@pytest.fixture(scope="module")
def local(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sha256 of what a local build makes of it."""
    out = tmp_path_factory.mktemp("local")
    build(model, out, *QUANTS)
    return artifacts_in(out)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Start]:
    """Serves a folder to huggingface_hub; small pieces and slabs, so that there are many."""
    with ExitStack() as stack:
        stack.enter_context(small_slabs(SLAB))
        stack.enter_context(patch("quantkit.checkpoint.ahead._LARGEST_PIECE", PIECE))

        def start(folder: Path, own_token: str | None = None, **settings: Any) -> HubServer:
            server = stack.enter_context(serve(HubServer(folder, **settings)))
            stack.enter_context(client_of(server, tmp_path / "cache", own_token))
            return server

        yield start


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would wait between two attempts, without the waiting."""
    waits: list[float] = []
    monkeypatch.setattr(
        "quantkit.checkpoint.ahead.ReadAhead._pause",
        lambda _self, seconds: waits.append(seconds) if seconds else None,
    )
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    return waits


def build_from_hub(out: Path, **options: Any) -> None:
    build_work(prepare(open_hub_checkpoint(ID), find_quants(QUANTS)), out, **options)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def bytes_asked_for(server: HubServer) -> dict[str, list[tuple[int, int]]]:
    """The ranges of weights that the server was asked for, in order, by file."""
    ranges: dict[str, list[tuple[int, int]]] = {name: [] for name in WEIGHTS}
    for method, path, wanted in server.requests:
        name = path.rpartition("/")[2]
        if method == "GET" and name in ranges and wanted:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            ranges[name].append((int(start), int(end) + 1))
    return ranges


def test_a_bad_connection_costs_little_and_changes_nothing(
    hub: Start, model: Path, local: dict[str, str], tmp_path: Path
) -> None:
    """Every 20th answer breaks off in its middle."""
    server = hub(model, drop_every=20, meet=3)

    build_from_hub(tmp_path / "out")

    assert artifacts_in(tmp_path / "out") == local
    assert server.bytes_sent <= 1.05 * size_of(model), server.bytes_sent
    answers = sum(len(ranges) for ranges in bytes_asked_for(server).values())
    assert answers > 120  # so that at least six were cut short
    assert 3 <= server.most_at_once <= 8
    source = manifest_of(tmp_path / "out")["Model-8x2.2M-Q8_0"]["source"]
    assert (source["name"], source["repo_id"], source["commit"]) == ("Model", ID, COMMIT)
    for entry in source["weights"]:
        assert entry["verified"] is True
        assert entry["sha256"] == sha256_of(model / entry["name"])


@pytest.mark.native  # for the time that bitsandbytes takes
def test_folders_for_transformers_are_the_same_too(hub: Start, model: Path, tmp_path: Path) -> None:
    (model / "LICENSE").write_text("Do as you like.\n")
    try:
        hub(model)
        for source, out in ((model, "local"), (open_hub_checkpoint(ID), "hub")):
            build_work(prepare(source, find_quants(["bnb-nf4"])), tmp_path / out)
    finally:
        (model / "LICENSE").unlink()
    files = {
        out: {
            str(path.relative_to(tmp_path / out)): sha256_of(path)
            for path in (tmp_path / out).rglob("*")
            if path.is_file() and path.name != "quantkit.json"
        }
        for out in ("local", "hub")
    }
    assert files["hub"] == files["local"]
    assert any(name.endswith("LICENSE") for name in files["hub"])


@pytest.mark.native  # for its time
def test_memory_for_reading_ahead_is_part_of_the_limit(
    hub: Start, model: Path, local: dict[str, str], tmp_path: Path
) -> None:
    hub(model)
    with patch("quantkit.checkpoint.ahead._LARGEST_PIECE", 16 * 2**20):
        refused = quantkit("build", ID, "-q", "q8_0", "-o", tmp_path / "out", "--max-memory=64MiB")
        assert "give at least 86MiB" in refusal(refused)
        build_from_hub(tmp_path / "out", max_memory=86 * 2**20)
    assert artifacts_in(tmp_path / "out") == local


# What a killed build has finished is not read again.


def test_sigkill_in_the_middle(
    hub: Start, model: Path, local: dict[str, str], tmp_path: Path
) -> None:
    server = hub(model)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.building.hub_build", str(SLAB), str(PIECE), "60"]
    killed = subprocess.run(
        [*command, "build", ID, *("-q", "q8_0", "-q", "q4_k_m", "-o", out, "--jobs", "2")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not artifacts_in(out)

    journal = out / ".quantkit-journal"
    finished, interrupted = units_in(journal), journal.read_text()
    assert len(finished) >= 60
    sent, server.bytes_sent = server.bytes_sent, 0
    server.requests.clear()
    build_from_hub(out)

    assert artifacts_in(out) == local
    assert server.bytes_sent < size_of(model) - finished_bytes(model, finished) + 400_000
    work = prepare(open_hub_checkpoint(ID), find_quants(QUANTS))
    again = bytes_asked_for(server)
    targets = [tensor.target for tensor in work.layouts[0].plan.tensors]
    units = cut_units(targets, work.checkpoint.tensors)
    for index in finished:
        unit = units[index]
        if unit.source is None:
            continue
        start, end = unit.offset, unit.offset + unit.n_bytes
        for first, last in again[unit.source.file.name]:
            is_header = first == 0 and last <= 4096
            assert is_header or last <= start or end <= first
    weights = manifest_of(out)["Model-8x2.2M-Q8_0"]["source"]["weights"]
    assert [entry["sha256"] for entry in weights] == [sha256_of(model / name) for name in WEIGHTS]
    sources = [units[index].source for index in finished]
    cut = {source.file.name for source in sources if source is not None}
    cut -= {name for name in WEIGHTS if f'"{name}"' in interrupted}  # hashed whole before
    assert [entry["verified"] for entry in weights] == [name not in cut for name in WEIGHTS]
    assert sent > 0


def units_in(journal: Path) -> set[int]:
    """The units that a journal names as finished."""
    found: set[int] = set()
    for line in journal.read_text().splitlines()[2:]:
        try:
            found |= {int(key) for key in json.loads(line) if key != "hashed"}
        except ValueError:
            continue
    return found


def finished_bytes(model: Path, finished: set[int]) -> int:
    work = prepare(model, find_quants(QUANTS))
    with small_slabs(SLAB):
        targets = [tensor.target for tensor in work.layouts[0].plan.tensors]
        units = cut_units(targets, work.checkpoint.tensors)
    return sum(units[index].n_bytes for index in finished)


def test_a_file_that_was_hashed_whole_stays_verified(
    hub: Start, model: Path, local: dict[str, str], tmp_path: Path
) -> None:
    """The build breaks in the third file; what it knows of the first two it does not forget."""

    def refuse(name: str, time: int) -> tuple[int, dict[str, str]] | None:
        # Late, so that it is in the journal: answers come in any order, and slabs after them.
        return (403, {}) if name == WEIGHTS[2] and time > 60 else None

    server = hub(model, refuse=refuse)
    with pytest.raises(CheckpointError, match="status 403"):
        build_from_hub(tmp_path / "out", jobs=1)
    server.refuse = lambda _name, _time: None
    server.requests.clear()

    build_from_hub(tmp_path / "out")

    assert artifacts_in(tmp_path / "out") == local
    weights = manifest_of(tmp_path / "out")["Model-8x2.2M-Q8_0"]["source"]["weights"]
    # Of the third the journal has something or, where nothing of it was finished, nothing: then it
    # is read whole.
    asked = sorted(bytes_asked_for(server)[WEIGHTS[2]])
    reached = 0
    for start, end in asked:
        reached = max(reached, end) if start <= reached else reached
    read_whole = reached == (model / WEIGHTS[2]).stat().st_size
    assert [entry["verified"] for entry in weights] == [True, True, read_whole]


# A file that changes.


@pytest.mark.parametrize("change", ["bytes", "size", "commit", "gone"])
def test_a_change_in_the_middle_is_noticed(
    hub: Start, model: Path, tmp_path: Path, change: str
) -> None:
    folder, out = shutil.copytree(model, tmp_path / "Model"), tmp_path / "out"
    server = hub(folder)

    def before(name: str, time: int) -> None:
        file = folder / WEIGHTS[1]
        if name != WEIGHTS[1] or time != 8:
            return
        if change == "commit":
            server.commit, server.branches = "f" * 40, ("main", server.commit)
        elif change == "gone":
            file.unlink()
        else:
            other = bytes(1 if change == "size" else 0)
            data = file.read_bytes()
            new = file.with_name("new")
            new.write_bytes(data[:-1000] + bytes(1000) + other)
            new.replace(file)

    server.before = before
    with pytest.raises(CheckpointError) as caught:
        build_from_hub(out)

    said = str(caught.value)
    if change == "gone":
        assert "is not there any more" in said
    else:
        assert " of someone/Model at 0123456789ab changed on the server" in said
    assert "\n" not in said
    assert not artifacts_in(out)
    if change != "gone":
        # Nothing of the old file can go into what is built of the new one.
        assert isinstance(caught.value, SourceChangedError)
        assert names_in(out) == set()
    if change == "bytes":
        server.before = lambda _name, _time: None
        build_from_hub(out)
        build(folder, tmp_path / "expected", *QUANTS)
        assert artifacts_in(out) == artifacts_in(tmp_path / "expected")


def test_bytes_that_do_not_have_the_hubs_hash_are_refused(
    hub: Start, model: Path, tmp_path: Path
) -> None:
    """Something between here and the Hub flips one byte, and no header shows it."""
    real = "quantkit.checkpoint.ahead.fetch_range"
    from quantkit.checkpoint.remote import fetch_range

    def flipped(repo: Any, name: str, start: int, end: int, **options: Any) -> bytearray:
        data = fetch_range(repo, name, start, end, **options)
        if name == WEIGHTS[1] and start <= 500_000 < end:
            data[500_000 - start] ^= 1
        return data

    hub(model)
    with patch(real, flipped), pytest.raises(SourceChangedError, match="The sha256 of model-00002"):
        build_from_hub(tmp_path / "out")
    assert names_in(tmp_path / "out") == set()


# --keep-source.


def keep(out: Path, folder: Path, *options: str) -> Any:
    arguments = ["build", ID, "-q", "q8_0", "-q", "q4_k_m", "-o", out, "--no-smoke"]
    return quantkit(*arguments, "--keep-source", folder, *options)


def test_keep_source_stores_the_checkpoint(
    hub: Start, model: Path, local: dict[str, str], tmp_path: Path
) -> None:
    server = hub(model)
    kept = tmp_path / "kept"

    assert keep(tmp_path / "out", kept).code == 0

    assert artifacts_in(tmp_path / "out") == local
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == {
        p.name: p.read_bytes() for p in model.iterdir()
    }
    assert server.bytes_sent <= 1.05 * size_of(model)
    build(kept, tmp_path / "again", *QUANTS)
    assert len(artifacts_in(tmp_path / "again")) == 2

    # A second build reads what is here.
    server.requests.clear()
    assert keep(tmp_path / "second", kept).code == 0
    assert artifacts_in(tmp_path / "second") == local
    assert all(last <= 4096 for r in bytes_asked_for(server).values() for _, last in r)


def test_keep_source_goes_on_where_it_broke(
    hub: Start, model: Path, local: dict[str, str], tmp_path: Path
) -> None:
    def refuse(name: str, time: int) -> tuple[int, dict[str, str]] | None:
        return (403, {}) if name == WEIGHTS[1] and time > 20 else None

    server = hub(model, refuse=refuse)
    kept = tmp_path / "kept"
    failed = keep(tmp_path / "out", kept)
    assert failed.code == 2
    assert "status 403" in failed.err
    assert (kept / WEIGHTS[0]).exists()
    (partial,) = kept.glob("*.partial")
    there = partial.stat().st_size
    assert there > PIECE
    assert not (kept / WEIGHTS[1]).exists()

    server.refuse = lambda _name, _time: None
    server.requests.clear()
    assert keep(tmp_path / "out", kept).code == 0

    assert artifacts_in(tmp_path / "out") == local
    assert {p.name for p in kept.iterdir()} == {p.name for p in model.iterdir()}
    assert min(first for first, last in bytes_asked_for(server)[WEIGHTS[1]] if first) == there
    weights = manifest_of(tmp_path / "out")["Model-8x2.2M-Q8_0"]["source"]["weights"]
    assert all(entry["verified"] for entry in weights)


def test_keep_source_does_not_mix_checkpoints(hub: Start, model: Path, tmp_path: Path) -> None:
    hub(model)
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "config.json").write_text("{}")
    assert "config.json does not belong to someone/Model" in refusal(keep(tmp_path / "out", kept))
    (kept / "config.json").unlink()
    (kept / WEIGHTS[0]).write_bytes((model / WEIGHTS[0]).read_bytes()[:-1] + b"?")
    text = refusal(keep(tmp_path / "out", kept))
    assert "is not the one that the Hub lists" in text
    assert "delete that file" in text
    local = quantkit("build", model, "-q", "q8_0", "-o", tmp_path, "--keep-source", tmp_path)
    assert "is for checkpoints from the Hub" in refusal(local)


def test_gptq_asks_for_a_folder_first(hub: Start, model: Path, tmp_path: Path) -> None:
    server = hub(model)
    text = refusal(quantkit("build", ID, "-o", tmp_path / "out", "-q", "gptq-int4"))
    assert "give a folder to store them in with --keep-source" in text
    assert all(last <= 4096 for r in bytes_asked_for(server).values() for _, last in r)


@pytest.mark.native  # for the time that torch takes
@pytest.mark.parametrize("keeps", [True, False])
def test_calibrating_from_the_hub(keeps: bool, hub: Start, tmp_path: Path) -> None:
    """Stored meanwhile, the weights are sent once; read by range, a second time for the build."""
    model = random_checkpoint(tmp_path / "Model", "mistral", num_hidden_layers=1)
    server = hub(model, drop_every=20)
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    options = ["--chunks", "2", "--context", "64", "--imatrix", "auto", "--no-smoke"]

    done = quantkit(
        *("build", ID, "-q", "q4_k_m", "-o", tmp_path / "out", "--text", text, *options),
        *(("--keep-source", tmp_path / "kept") if keeps else ()),
    )

    assert done.code == 0, done.err
    assert server.bytes_sent <= (1.05 if keeps else 2.1) * size_of(model)
    (entry,) = manifest_of(tmp_path / "out").values()
    assert entry["source"]["commit"] == COMMIT
    assert entry["imatrix"]["file"] == "imatrix.gguf"


# Refusals: one sentence each, and nothing is left.


def refused_build(out: Path, *options: object) -> str:
    return refusal(quantkit("build", ID, "-q", "q8_0", "-o", out, "--no-smoke", *options))


def range_fault(status: int, **headers: str) -> Callable[[str, int], Any]:
    """A status for weights, but not for their headers."""
    return lambda name, time: (status, headers) if name in WEIGHTS and time > 1 else None


@pytest.mark.parametrize(
    ("settings", "token", "reason"),
    [
        ({"token": TOKEN}, None, "is not on the Hub or is private"),
        ({"token": TOKEN}, "hf_another", "is not on the Hub or is private"),
        ({"gated": True}, TOKEN, "is gated; accept its terms"),
        ({"refuse": range_fault(401)}, TOKEN, "the token is not valid"),
        ({"refuse": range_fault(403)}, TOKEN, "the token has no right to read it"),
        ({"refuse": range_fault(429, **{"Retry-After": "7"})}, TOKEN, "too many requests"),
        ({"refuse": range_fault(500)}, TOKEN, "status 500: try again later"),
    ],
)
def test_a_refusal_is_one_sentence(
    hub: Start,
    model: Path,
    tmp_path: Path,
    no_waiting: list[float],
    settings: dict[str, Any],
    token: str | None,
    reason: str,
) -> None:
    hub(model, token, **settings)

    text = refused_build(tmp_path / "out")

    assert reason in text
    assert "hf_" not in text
    assert not artifacts_in(tmp_path / "out")
    assert ("Retry-After" in str(settings)) <= (7.0 in no_waiting)


@pytest.mark.parametrize(("status", "headers"), [(503, {}), (429, {"Retry-After": "9"})])
def test_trouble_that_passes_is_waited_for(
    hub: Start,
    model: Path,
    local: dict[str, str],
    tmp_path: Path,
    no_waiting: list[float],
    status: int,
    headers: dict[str, str],
) -> None:
    server = hub(model)
    server.refuse = lambda name, time: (
        (status, headers) if name in WEIGHTS and time in (5, 6, 7, 11, 30) else None
    )

    build_from_hub(tmp_path / "out")

    assert artifacts_in(tmp_path / "out") == local
    assert server.bytes_sent <= 1.05 * size_of(model)
    assert len(no_waiting) >= 15
    assert not headers or set(no_waiting) == {9.0}


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Start, model: Path, local: dict[str, str], tmp_path: Path
) -> None:
    """The Hub sends clients to another host for weights."""
    with serve(HubServer(model)) as elsewhere:
        server = hub(model, TOKEN, token=TOKEN, moved=elsewhere.url)

        build_from_hub(tmp_path / "out")

        assert artifacts_in(tmp_path / "out") == local
        assert set(server.authorizations) == {f"Bearer {TOKEN}"}
        assert len(elsewhere.authorizations) > 30
        assert set(elsewhere.authorizations) == {None}
    for file in (tmp_path / "out").rglob("*"):
        assert TOKEN.encode() not in file.read_bytes()


def test_a_full_disk_stops_before_the_first_weight(
    hub: Start, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub(model)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=12_000_000))

    text = refused_build(tmp_path / "out")
    assert "has 12 MB free and the build needs" in text
    # What is kept needs room on the same disk.
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=30_000_000))
    text = refused_build(tmp_path / "out", "--keep-source", tmp_path / "kept")
    assert "has 30 MB free and the build needs" in text
    assert all(last <= 4096 for r in bytes_asked_for(server).values() for _, last in r)


def test_memory_that_is_not_there_stops_it_too(hub: Start, model: Path, tmp_path: Path) -> None:
    server = hub(model)
    text = refused_build(tmp_path / "out", "--max-memory", "100TB")
    assert "is more than the" in text
    assert all(last <= 4096 for r in bytes_asked_for(server).values() for _, last in r)


@pytest.mark.parametrize("name", ["../escaped.safetensors", "/escaped.safetensors", "a/b"])
def test_names_that_lead_elsewhere_do_nothing(
    hub: Start, model: Path, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(model, tmp_path / "Model")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], name)
    index.write_text(json.dumps(content))
    server = hub(folder, extra_siblings=(name, "additional_chat_templates/../../evil.jinja"))
    kept = tmp_path / "kept"

    text = refused_build(tmp_path / "out", "--keep-source", kept)

    assert "is not the name of a file in its folder" in text
    assert not any("escaped" in path or "evil" in path for _, path, _ in server.requests)
    assert not kept.exists()
    assert not list(tmp_path.rglob("*escaped*"))
    assert not list(tmp_path.rglob("*evil*"))


def test_a_commit_that_is_a_path_does_nothing(hub: Start, model: Path, tmp_path: Path) -> None:
    hub(model, commit="../../../../escaped")
    text = refused_build(tmp_path / "out", "--keep-source", tmp_path / "kept")
    assert "lacks its commit" in text
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


def test_what_is_a_folder_stays_local(
    hub: Start, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub(model)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "someone" / "Model")
    done = quantkit("build", ID, "-q", "q8_0", "-o", "out", "--no-smoke")
    assert done.code == 0, done.err
    assert server.requests == []
    shutil.rmtree(tmp_path / "someone")
    assert "does not exist" in refusal(quantkit("build", "./someone/Model", "-q", "q8_0"))
    assert server.requests == []
    assert "has no revision 'v9'" in refusal(quantkit("build", f"{ID}@v9", "-q", "q8_0"))
    assert "out" in [p.name for p in tmp_path.iterdir()]


@pytest.mark.native  # for its time
def test_the_cache_of_the_hub_is_used(
    hub: Start, model: Path, local: dict[str, str], tmp_path: Path
) -> None:
    from huggingface_hub import constants, snapshot_download

    server = hub(model)
    snapshot_download(ID)
    server.requests.clear()
    build_from_hub(tmp_path / "out")
    assert artifacts_in(tmp_path / "out") == local
    assert bytes_asked_for(server) == {name: [] for name in WEIGHTS}
    with patch.object(constants, "HF_HUB_OFFLINE", True):
        build_from_hub(tmp_path / "offline")
    assert artifacts_in(tmp_path / "offline") == local
