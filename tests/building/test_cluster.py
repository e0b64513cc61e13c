"""The same build on a Ray cluster: two nodes of this machine, with real processes to kill."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

import quantkit as package
from quantkit.building.artifact import Progress
from quantkit.building.cluster import calls
from quantkit.building.work import prepare
from quantkit.core.errors import ClusterError, Interrupted
from quantkit.planning.quants import find_quants
from tests.building.builds import (
    artifacts_in,
    build,
    build_work,
    manifest_of,
    names_in,
    small_slabs,
    timeless_manifest_of,
)
from tests.cli.command import quantkit, refusal
from tests.gguf_sources import unquantized
from tests.hub_server import HubServer, serve
from tests.large_checkpoints import large_checkpoint
from tests.large_experts import large_experts
from tests.ray_nodes import RayNodes, running

ROOT = Path(package.__file__).parents[1]
TINY = ROOT / "tests/checkpoints/tiny-mixtral"
ID = "someone/Model"
LADDER = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
SMALL = ("-m", "tests.building.cluster_build", str(2**15), "0.5")  # the command, in small slabs


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """Two nodes that nobody kills."""
    with running((), ()) as cluster:
        yield cluster


@pytest.fixture
def mortal() -> Iterator[RayNodes]:
    """Two nodes that a test may kill."""
    with running((), ()) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def by_threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ladder of tiny-mixtral, and a folder of it, as threads build them."""
    out = tmp_path_factory.mktemp("threads") / "out"
    build(TINY, out, *LADDER, "bnb-nf4")
    return out


@pytest.fixture(scope="module")
def ladder_by_threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ladder of tiny-mixtral alone."""
    out = tmp_path_factory.mktemp("ladder") / "out"
    build(TINY, out, *LADDER)
    return out


def command(
    checkpoint: Path | str, out: Path, *quants: str, start: tuple[str, ...] = ("-m", "quantkit")
) -> list[str]:
    wishes = [word for quant in quants for word in ("-q", quant)]
    return [sys.executable, *start, "build", str(checkpoint), *wishes, "-o", str(out), "--no-smoke"]


def run(nodes: RayNodes, arguments: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*arguments, *options],
        env=nodes.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def begun(nodes: RayNodes, arguments: list[str], out: Path) -> "Iterator[subprocess.Popen[str]]":
    """A build in the middle of its work, as by SIGSTOP: it has journaled some slabs, not all."""
    with subprocess.Popen(
        [*arguments, "--cluster", "auto"],
        env=nodes.environment | {"STOP_AT": "3"},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            moment = os.WSTOPPED | os.WEXITED | os.WNOWAIT
            stopped = os.waitid(os.P_PID, process.pid, moment)
            assert stopped is not None
            assert stopped.si_code == os.CLD_STOPPED, process.communicate()[1]
            assert len(finished(out / ".quantkit-journal")) >= 3
            yield process
        finally:
            process.kill()


def finished(journal: Path) -> set[str]:
    """The slabs that a journal lists."""
    units: set[str] = set()
    for line in journal.read_text().splitlines():
        try:
            units.update(key for key in json.loads(line) if key.isdecimal())
        except ValueError:
            continue  # the last line, half written
    return units


def same(out: Path, other: Path) -> bool:
    """Whether two output folders hold the same artifacts, described alike, and nothing else."""
    same_files = all(
        (out / name).read_bytes() == (other / name).read_bytes()
        for name in names_in(other) - {"quantkit.json"}
    )
    same_manifest = timeless_manifest_of(out) == timeless_manifest_of(other)
    return names_in(out) == names_in(other) and same_files and same_manifest


def test_a_cluster_builds_the_same_bytes(nodes: RayNodes, by_threads: Path, tmp_path: Path) -> None:
    built = run(nodes, command(TINY, tmp_path / "out", *LADDER, "bnb-nf4"), "--cluster", "auto")
    assert built.returncode == 0, built.stderr
    assert "Encoding on a Ray cluster of 2 processors." in built.stderr
    assert same(tmp_path / "out", by_threads)  # the manifest too
    again = run(nodes, command(TINY, tmp_path / "out", *LADDER), "--cluster", "auto")
    assert again.returncode == 0
    assert "already)" in again.stdout
    assert "Encoding" not in again.stderr


@pytest.mark.native  # for its time
def test_a_cluster_at_an_address(nodes: RayNodes, by_threads: Path, tmp_path: Path) -> None:
    relative = Path(os.path.relpath(TINY, ROOT))
    built = run(nodes, command(relative, tmp_path, "q4_k_m"), "--cluster", nodes.client_address)
    assert built.returncode == 0, built.stderr
    assert artifacts_in(tmp_path).items() <= artifacts_in(by_threads).items()


@pytest.mark.native  # for its time
def test_a_cluster_builds_a_large_model(nodes: RayNodes, tmp_path: Path) -> None:
    """0.2 G parameters in four files: some fifty slabs, most of full size."""
    large = large_checkpoint(
        tmp_path / "large",
        shard_size=100 * 10**6,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=1,
        num_local_experts=4,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=8000,
    )
    quants = ("q8_0", "q4_k_m")
    build(large, tmp_path / "threads", *quants)
    built = run(nodes, command(large, tmp_path / "out", *quants), "--cluster", "auto")
    assert built.returncode == 0, built.stderr
    assert artifacts_in(tmp_path / "out") == artifacts_in(tmp_path / "threads")
    ours, theirs = (timeless_manifest_of(tmp_path / name) for name in ("out", "threads"))
    assert ours == theirs


@pytest.mark.native  # for its time
def test_a_killed_process_and_a_killed_node(
    mortal: RayNodes, by_threads: Path, tmp_path: Path
) -> None:
    for attempt in range(20):  # a build may be over before one of its short tasks is caught
        out = tmp_path / f"out-{attempt}"
        with begun(mortal, command(TINY, out, *LADDER, start=SMALL), out) as process:
            process.send_signal(signal.SIGCONT)
            caught = mortal.kill_worker(0, "encode", process)
            if caught:
                mortal.kill(1)
            _, said = process.communicate()
        assert process.returncode == 0, said
        assert artifacts_in(out) == artifacts_in(by_threads)
        retries = [line for line in said.splitlines() if line.startswith("Trying again (1 of 3): ")]
        assert not caught or any("its process was killed" in line for line in retries)
        if any("its node was lost" in line for line in retries):
            break
        if caught:  # when the other node was at no task
            mortal.restart(1)
    assert any("its process was killed" in line for line in retries)
    assert any("its node was lost" in line for line in retries)
    assert all("slab " in line or "sha256 of " in line for line in retries)


@pytest.mark.native  # for its time
def test_a_killed_driver(nodes: RayNodes, by_threads: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = command(TINY, out, *LADDER, "bnb-nf4", start=SMALL)
    with begun(nodes, arguments, out) as process:
        process.send_signal(signal.SIGKILL)
    journal = out / ".quantkit-journal"
    before = finished(journal)
    assert before
    assert not (out / "quantkit.json").exists()
    with begun(nodes, arguments, out) as process:
        assert before <= finished(journal)  # taken over, not begun anew
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate()
    assert process.returncode == 0, said
    assert same(out, by_threads)


@pytest.mark.native  # for its time
def test_a_quant_is_added_to_what_threads_began(nodes: RayNodes, tmp_path: Path) -> None:
    """Slabs that are done for one quant go to the nodes for the other alone."""
    out = tmp_path / "out"
    work = prepare(TINY, find_quants(["q8_0"]))
    left = 40

    def report(_: Progress) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with small_slabs(int(SMALL[2])), pytest.raises(Interrupted):
        build_work(work, out, report=report)
    before = finished(out / ".quantkit-journal")
    assert len(before) > 20
    arguments = command(TINY, out, "q8_0", "q4_0", start=SMALL)
    with begun(nodes, arguments, out) as process:
        assert before <= finished(out / ".quantkit-journal")
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate()
    assert process.returncode == 0, said
    build(TINY, tmp_path / "threads", "q8_0", "q4_0")
    assert same(out, tmp_path / "threads")


@pytest.mark.native  # for its time
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c(
    nodes: RayNodes, ladder_by_threads: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    out = tmp_path / "out"
    arguments = command(TINY, out, *LADDER, start=SMALL)
    with begun(nodes, arguments, out) as process:
        process.send_signal(sent)
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate()
    assert process.returncode == 130, said
    assert "slabs encoded; run the same command to go on from there." in said.splitlines()[-1]
    resumed = run(nodes, arguments, "--cluster", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert same(out, ladder_by_threads)


@pytest.mark.native  # for its time
def test_a_checkpoint_on_the_hub(tmp_path: Path) -> None:
    """Nodes read it by range: nobody downloads it, and no more is sent than it holds.

    As in the background of a shell, where SIGINT is ignored.
    """
    with serve(HubServer(TINY)) as server:
        environment = os.environ | {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "cache"),
            "RAY_AUTH_MODE": "disabled",
        }
        for folder, options in (("threads", ()), ("out", ("--cluster", "local"))):
            before = server.bytes_sent
            built = subprocess.run(
                [*command(ID, tmp_path / folder, "q4_k_m"), *options],
                env=environment,
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN),
            )
            assert built.returncode == 0, built.stderr
            sent = server.bytes_sent - before
    size = sum(file.stat().st_size for file in TINY.iterdir())
    assert sent < 1.05 * size
    assert artifacts_in(tmp_path / "out") == artifacts_in(tmp_path / "threads")
    (entry,) = manifest_of(tmp_path / "out").values()
    assert not any(weights["verified"] for weights in entry["source"]["weights"])


def test_a_gguf(nodes: RayNodes, tmp_path: Path) -> None:
    """The source's shards, read by nodes: the same bytes as by threads."""
    first = unquantized(TINY, tmp_path / "repo", name="Tiny", shard_size=10**7)
    quants = ("q8_0", "q4_k_m")
    build(first, tmp_path / "threads", *quants)
    here = run(nodes, command(first, tmp_path / "here", *quants), "--cluster", "auto")
    assert here.returncode == 0, here.stderr
    assert same(tmp_path / "here", tmp_path / "threads")


@pytest.mark.native  # for the time that another cluster takes to start
def test_a_gguf_on_the_hub(tmp_path: Path) -> None:
    """By range, as a checkpoint's files are."""
    first = unquantized(TINY, tmp_path / "repo", name="Tiny", shard_size=10**7)
    quants = ("q8_0", "q4_k_m")
    build(first, tmp_path / "threads", *quants)
    with serve(HubServer(first.parent)) as server:
        environment = os.environ | {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "cache"),
            "RAY_AUTH_MODE": "disabled",
        }
        source = f"{ID}/{first.name}"
        built = subprocess.run(
            [*command(source, tmp_path / "hub", *quants), "--cluster", "local"],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert built.returncode == 0, built.stderr
    assert artifacts_in(tmp_path / "hub") == artifacts_in(tmp_path / "threads")


def test_nodes_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"Resources": {"CPU": 4.0, "memory": 2.0**20}}
    monkeypatch.setattr(calls, "live_nodes", lambda: [node])
    with pytest.raises(ClusterError, match="has a processor and 382 MB of memory"):
        calls.count_processors()
    node["Resources"]["memory"] = 2.0**40
    assert calls.count_processors() == 4


@pytest.mark.native  # for its time
def test_a_node_without_quantkit(tmp_path: Path) -> None:
    """It is named, in one sentence."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['quantkit'] = None")
    with running(("env", f"PYTHONPATH={tmp_path}")) as bare:
        refused = run(bare, command(TINY, tmp_path / "out", "q8_0"), "--cluster", "auto")
    assert refused.returncode == 2
    sentence = refused.stderr.splitlines()[-1]
    assert re.match(r"Error: Node [\d.]+ cannot run quantkit \(ModuleNotFoundError: ", sentence)
    assert "Traceback" not in refused.stderr
    assert names_in(tmp_path / "out") == set()


def test_a_weight_that_is_not_finite(nodes: RayNodes, tmp_path: Path) -> None:
    """What fails on a node is the sentence that threads would say, and nothing stays."""
    checkpoint = tmp_path / "model"
    large_checkpoint(checkpoint, num_hidden_layers=1, hidden_size=256, intermediate_size=256)
    (file,) = checkpoint.glob("*.safetensors")
    with file.open("r+b") as stream:
        stream.seek(-2, os.SEEK_END)
        stream.write(b"\xff\x7f")
    failed = run(nodes, command(checkpoint, tmp_path / "out", "q8_0"), "--cluster", "auto")
    assert failed.returncode == 2
    assert "has a NaN or infinite weight" in failed.stderr.splitlines()[-1]
    assert names_in(tmp_path / "out") == set()


def test_without_ray(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    refused = subprocess.run(
        [*command(TINY, tmp_path / "out", "q8_0"), "--cluster", "local"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert refused.stderr == (
        "Error: --cluster needs Ray, which is not installed; pip install 'ray[client]'.\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.native  # for its time
def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    """By its address and by RAY_ADDRESS; port 1 is nobody's, the other one is not Ray's."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        silent = f"127.0.0.1:{mute.getsockname()[1]}"
        tries = [
            ("can be used at ray://127.0.0.1:1 (", "ray://127.0.0.1:1", ""),
            (f"can be used at ray://{silent} (", f"ray://{silent}", ""),
            ("runs here (", "auto", "127.0.0.1:1"),
            ("runs here (no answer in 15 s)", "auto", silent),
        ]
        attempts = [
            subprocess.Popen(
                [*command(TINY, tmp_path / "out", "q8_0"), "--cluster", address],
                env=os.environ | {"RAY_ADDRESS": known, "RAY_AUTH_MODE": "disabled"},
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _, address, known in tries
        ]
    for attempt, (where, _, _) in zip(attempts, tries, strict=True):
        _, said = attempt.communicate()
        assert attempt.returncode == 2
        assert len(said.splitlines()) == 1
        assert said.startswith(f"Error: No Ray cluster {where}")
    assert not (tmp_path / "out").exists()


def test_a_local_cluster_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray gives a node half a minute; the class of its error is Exception."""
    monkeypatch.setattr("ray._private.node.Node", _late)
    outcome = quantkit("build", TINY, "-q", "q8_0", "-o", tmp_path / "out", "--cluster", "local")
    assert refusal(outcome) == (
        "Ray does not start here (The current node timed out during startup); run the same command "
        "again when this machine has less to do, or without --cluster."
    )
    assert not (tmp_path / "out").exists()


def _late(*_: object, **__: object) -> None:
    raise Exception("The current node timed out during startup.")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--cluster", "10.0.0.1:6379"), "must be local, auto or ray://HOST:PORT"),
        (("--cluster-jobs", "3"), "--cluster-jobs needs --cluster"),
    ],
)
def test_options_that_make_no_sense(
    options: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    refused = quantkit("build", TINY, "-q", "q8_0", "-o", tmp_path / "out", *options)
    assert sentence in refusal(refused)
    assert not (tmp_path / "out").exists()


@pytest.mark.native  # for the time that converters take to start beside each other
def test_what_a_converter_computes_is_computed_on_the_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process starts a converter of its own, which ends when it does."""
    folder = large_experts(tmp_path / "model", hidden=256, width=256, experts=4, fp8=True)
    build(folder, tmp_path / "threads", "q4_k_m")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # which converters inherit
    with running((), ()) as cluster:
        out = tmp_path / "out"
        watched: set[int] = set()
        arguments = command(folder, out, "q4_k_m")
        with subprocess.Popen(
            [*arguments, "--cluster", "auto"],
            env=cluster.environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            while process.poll() is None:
                watched |= _converters(tmp_path)
                time.sleep(0.2)  # time: looked at again until it is over
            assert process.stderr is not None
            said = process.stderr.read()
        assert process.returncode == 0, said
        assert same(out, tmp_path / "threads")
    assert len(watched) >= 2  # one here, which described it, and one on a node
    for _ in range(300):
        if not _converters(tmp_path):
            break
        time.sleep(0.2)  # time: a converter looks up once nobody can ask it any more
    assert not _converters(tmp_path)


def _converters(temporary: Path) -> set[int]:
    """The running converters of processes with such a folder for temporary files."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_one = b"quantkit.checkpoint.converter.child" in (process / "cmdline").read_bytes()
            entries = (process / "environ").read_bytes().split(b"\0") if is_one else []
            if f"TMPDIR={temporary}".encode() in entries:
                found.add(int(process.name))
    return found
