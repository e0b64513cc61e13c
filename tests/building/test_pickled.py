"""Checkpoints whose weights torch.save wrote: what is made of them is that of safetensors."""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file

from quantkit.building.work import prepare
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.folder import list_folder, open_folder
from quantkit.checkpoint.hub import open_hub_checkpoint
from quantkit.checkpoint.hub_rows import with_rows
from quantkit.checkpoint.open import open_checkpoint, open_model
from quantkit.checkpoint.rows import open_rows
from quantkit.core.errors import CheckpointError, SourceChangedError
from quantkit.planning.quants import find_quants
from tests.building.builds import (
    Job,
    artifacts_in,
    build,
    build_work,
    manifest_of,
    run,
    small_slabs,
    start,
)
from tests.cli.command import quantkit
from tests.hub_server import HubServer, client_of, serve
from tests.parity.cases import TRAINED
from tests.pickled import pickled, weights_of

MISTRAL, MIXTRAL = TRAINED / "tiny-mistral", TRAINED / "tiny-mixtral"
ID = "someone/tiny-mistral"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

Start = Callable[..., HubServer]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Start]:
    """Serves a folder to huggingface_hub; small pieces and slabs, so that there are many."""
    with ExitStack() as stack:
        stack.enter_context(small_slabs(2**14))
        stack.enter_context(patch("quantkit.checkpoint.ahead._LARGEST_PIECE", 2**17))

        def start(folder: Path, **settings: Any) -> HubServer:
            server = stack.enter_context(serve(HubServer(folder, ID, **settings)))
            stack.enter_context(client_of(server, tmp_path / "cache"))
            return server

        yield start


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sha256 of what the safetensors of tiny-mistral become."""
    out = tmp_path_factory.mktemp("expected")
    build(MISTRAL, out, "q4_k_m", check=None)
    return artifacts_in(out)


def build_from_hub(out: Path, *quants: str, **options: Any) -> None:
    build_work(prepare(open_hub_checkpoint(ID), find_quants(quants)), out, check=None, **options)


def size_of(checkpoint: Checkpoint) -> int:
    assert checkpoint.repo is not None
    return sum(checkpoint.repo.sizes[file.name] for file in checkpoint.files)


@pytest.mark.parametrize(
    ("source", "files", "quants"),
    [
        (MISTRAL, 1, ("q4_k_m", "bnb-nf4")),
        (MISTRAL, 3, ("q4_k_m",)),
        (MIXTRAL, 1, ("q4_k_m",)),
        (MIXTRAL, 3, ("f16",)),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else None,
)
def test_the_bytes_are_those_of_safetensors(
    tmp_path: Path, source: Path, files: int, quants: tuple[str, ...]
) -> None:
    other = pickled(source, tmp_path / source.name, files)
    found = build(other, tmp_path / "found", *quants, check=None)
    expected = build(source, tmp_path / "expected", *quants, check=None)
    for ours, theirs in zip(found, expected, strict=True):
        weights = "" if ours.path.is_file() else "model.safetensors"
        assert (ours.path / weights).read_bytes() == (theirs.path / weights).read_bytes()


def tied_twins(tmp_path: Path) -> tuple[Path, Path]:
    """tiny-mistral with tied embeddings, pickled and in safetensors, which share no bytes."""
    one = pickled(MISTRAL, tmp_path / "pickled" / MISTRAL.name, tied=True)
    small = shutil.ignore_patterns("*.safetensors", "*.index.json")
    other = shutil.copytree(MISTRAL, tmp_path / "plain" / MISTRAL.name, ignore=small)
    state = weights_of(MISTRAL)
    state[HEAD] = state[EMBEDDING].clone()
    save_file(state, other / "model.safetensors")
    for folder in (one, other):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return one, other


def test_a_tied_output_is_one_beside_the_embeddings(hub: Start, tmp_path: Path) -> None:
    """It is written wherever it is stored, as of safetensors: llama.cpp ties where it is absent.

    In a file of torch.save both lie in the same bytes, of which the Hub sends one copy.
    """
    one, other = tied_twins(tmp_path)
    checkpoint = open_checkpoint(one)
    assert checkpoint.tensors[EMBEDDING].offset == checkpoint.tensors[HEAD].offset
    remarks = [open_model(open_checkpoint(folder)).remarks for folder in (one, other)]
    assert remarks[0] == remarks[1]
    assert "there is an lm_head.weight. It is built" in " ".join(remarks[0])
    build(other, tmp_path / "expected", "q8_0", "f16", check=None)
    build(one, tmp_path / "found", "q8_0", "f16", check=None)
    assert artifacts_in(tmp_path / "found") == artifacts_in(tmp_path / "expected")

    server = hub(one)
    build_from_hub(tmp_path / "hub", "q8_0", "f16")
    assert artifacts_in(tmp_path / "hub") == artifacts_in(tmp_path / "expected")
    size = (one / "pytorch_model.bin").stat().st_size
    shared = checkpoint.tensors[HEAD].n_bytes
    assert server.bytes_sent < size + shared
    sha256 = hashlib.sha256((one / "pytorch_model.bin").read_bytes()).hexdigest()
    for out in ("found", "hub"):
        for entry in manifest_of(tmp_path / out).values():
            [weights] = entry["source"]["weights"]
            assert weights["sha256"] == sha256


@pytest.mark.parametrize("there", [True, False])
def test_tensors_that_overlap_otherwise(hub: Start, tmp_path: Path, there: bool) -> None:
    """One is a view that begins within another: neither of torch's rules nor of ours forbids it."""
    first = "model.layers.0.mlp.gate_proj.weight"
    second = "model.layers.0.mlp.up_proj.weight"
    rows, columns = weights_of(MISTRAL)[first].shape
    base = torch.randn(rows + 24, columns).bfloat16()
    more = {first: base[:rows], second: base[24:]}
    one = pickled(MISTRAL, tmp_path / "pickled" / MISTRAL.name, more=more)
    other = shutil.copytree(MISTRAL, tmp_path / "plain" / MISTRAL.name)
    for file in other.glob("*.safetensors*"):
        file.unlink()
    state = weights_of(MISTRAL) | {name: value.clone() for name, value in more.items()}
    save_file(state, other / "model.safetensors")
    build(other, tmp_path / "expected", "q8_0", check=None)

    if there:
        with small_slabs(2**14):
            build(one, tmp_path / "out", "q8_0", check=None)
    else:
        hub(one)
        build_from_hub(tmp_path / "out", "q8_0")

    assert artifacts_in(tmp_path / "out") == artifacts_in(tmp_path / "expected")
    [entry] = manifest_of(tmp_path / "out").values()
    sha256 = hashlib.sha256((one / "pytorch_model.bin").read_bytes()).hexdigest()
    assert entry["source"]["weights"][0]["sha256"] == sha256


def test_a_killed_build_goes_on(tmp_path: Path) -> None:
    """Of tied embeddings, whose slabs are read and journaled twice."""
    one, other = tied_twins(tmp_path)
    build(other, tmp_path / "expected", "q8_0", check=None)
    job = Job(one, tmp_path / "out", ("q8_0",), slab=2**14, commit_seconds=0, die_after=120)
    process, done = start(job)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert done().slabs == 120
    assert not artifacts_in(job.out)
    run(replace(job, die_after=None))
    assert artifacts_in(job.out) == artifacts_in(tmp_path / "expected")


# Which files are the weights.


def test_safetensors_are_read_where_both_are_there(hub: Start, tmp_path: Path) -> None:
    both = pickled(MISTRAL, tmp_path / "tiny-mistral", 3)
    for file in MISTRAL.glob("model*"):
        shutil.copyfile(file, both / file.name)
    for file in both.glob("*.bin"):
        file.write_bytes(b"not read")
    assert all(file.suffix == ".safetensors" for file in open_checkpoint(both).files)
    server = hub(both)
    remote = open_hub_checkpoint(ID)
    assert all(file.suffix == ".safetensors" for file in remote.files)
    assert not any("pytorch_model" in path for _, path, _ in server.requests)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    source = pickled(MISTRAL, tmp_path / "tiny-mistral", 3)
    (source / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 3 weight files.*00002-of-00003"):
        open_checkpoint(source)
    for file in source.glob("*.bin"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"lacks 3 of the 3 weight files"):
        open_checkpoint(source)


def test_an_index_that_says_otherwise_is_refused(hub: Start, tmp_path: Path) -> None:
    source = pickled(MISTRAL, tmp_path / "tiny-mistral", 2)
    index = source / "pytorch_model.bin.index.json"
    document = json.loads(index.read_text())
    weight_map = document["weight_map"]
    here = weight_map[EMBEDDING]
    weight_map[EMBEDDING] = next(file for file in weight_map.values() if file != here)
    index.write_text(json.dumps(document))
    hub(source)
    contradiction = r"embed_tokens\.weight.*but it is in"
    with pytest.raises(CheckpointError, match=contradiction):
        open_checkpoint(source)
    with pytest.raises(CheckpointError, match=contradiction):
        open_hub_checkpoint(ID)


# From the Hub.


@pytest.mark.parametrize("files", [1, 3])
def test_a_build_from_the_hub(
    hub: Start, expected: dict[str, str], tmp_path: Path, files: int
) -> None:
    server = hub(pickled(MISTRAL, tmp_path / "tiny-mistral", files), drop_every=20)
    build_from_hub(tmp_path / "out", "q4_k_m")
    assert artifacts_in(tmp_path / "out") == expected
    assert server.bytes_sent < 1.1 * size_of(open_hub_checkpoint(ID))
    [entry] = manifest_of(tmp_path / "out").values()
    assert len(entry["source"]["weights"]) == files
    for weights in entry["source"]["weights"]:
        file = tmp_path / "tiny-mistral" / weights["name"]
        assert weights["verified"] is True
        assert weights["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_build_from_the_hub_goes_on(hub: Start, expected: dict[str, str], tmp_path: Path) -> None:
    last = "pytorch_model-00003-of-00003.bin"
    server = hub(
        pickled(MISTRAL, tmp_path / "tiny-mistral", 3),
        refuse=lambda name, time: (403, {}) if name == last and time > 8 else None,
    )
    with pytest.raises(CheckpointError, match="status 403"):
        build_from_hub(tmp_path / "out", "q4_k_m", jobs=1)
    assert not artifacts_in(tmp_path / "out")
    server.refuse = lambda _name, _time: None
    server.bytes_sent = 0

    build_from_hub(tmp_path / "out", "q4_k_m")

    assert artifacts_in(tmp_path / "out") == expected
    assert server.bytes_sent < 0.6 * size_of(open_hub_checkpoint(ID))


def test_keep_source(hub: Start, expected: dict[str, str], tmp_path: Path) -> None:
    source = pickled(MISTRAL, tmp_path / "tiny-mistral", 2)
    hub(source)
    kept = tmp_path / "kept" / "tiny-mistral"
    arguments = ["build", ID, "-q", "q4_k_m", "--no-smoke", "--keep-source", kept]
    assert quantkit(*arguments, "-o", tmp_path / "out").code == 0
    assert artifacts_in(tmp_path / "out") == expected
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == {
        p.name: p.read_bytes() for p in source.iterdir()
    }
    build(kept, tmp_path / "again", "q4_k_m", check=None)
    assert artifacts_in(tmp_path / "again") == expected


def test_a_file_that_changes_is_noticed(hub: Start, tmp_path: Path) -> None:
    source = pickled(MISTRAL, tmp_path / "tiny-mistral")
    file = source / "pytorch_model.bin"

    def before(name: str, time: int) -> None:
        if name == file.name and time == 8:
            data = file.read_bytes()
            file.with_name("new").write_bytes(data[:-5000] + bytes(1000) + data[-4000:])
            file.with_name("new").replace(file)

    hub(source, before=before)
    with pytest.raises(SourceChangedError, match="changed on the server"):
        build_from_hub(tmp_path / "out", "q4_k_m")


def test_rows_are_those_of_safetensors(hub: Start, tmp_path: Path) -> None:
    """Which is what perplexity, calibration and densify read."""
    here = pickled(MIXTRAL, tmp_path / "tiny-mistral", 2)
    hub(here)
    checkpoints = [open_checkpoint(here), with_rows(open_hub_checkpoint(ID))]
    plain = open_checkpoint(MIXTRAL)
    for name in list(plain.tensors)[::10]:
        wanted = open_rows(plain)(name, 0, 1).tobytes()
        assert [open_rows(c)(name, 0, 1).tobytes() for c in checkpoints] == [wanted] * 2


# What describes a checkpoint.


def test_fit_and_inspect_say_the_same(hub: Start, tmp_path: Path) -> None:
    here = pickled(MISTRAL, tmp_path / "tiny-mistral", 2)
    server = hub(here)
    machine = ["--gpu", "24GB", "--ram", "64GB", "--json"]
    answers = [json.loads(quantkit("fit", name, *machine).out) for name in (MISTRAL, here, ID)]
    sizes = [[(q["quant"], q["tensor_bytes"]) for q in answer["quants"]] for answer in answers]
    assert sizes[0] == sizes[1] == sizes[2]
    assert sizes[0]
    weights = sum(file.stat().st_size for file in here.glob("*.bin"))
    asked = sum(
        int(end) + 1 - int(start)
        for _, path, wanted in server.requests
        if path.endswith(".bin") and wanted
        for start, _, end in [wanted.removeprefix("bytes=").partition("-")]
    )
    assert asked < weights / 50
    shown = [json.loads(quantkit("inspect", name, "--json").out) for name in (MISTRAL, here)]
    for key in ("kind", "family", "parameters", "metadata", "remarks"):
        assert shown[0][key] == shown[1][key], key
    tensors = {str(row["role"]): row for row in shown[1]["tensors"]}
    assert tensors.pop("unused")["count"] == 2  # the buffers of floats that it has besides
    assert tensors == {row["role"]: row for row in shown[0]["tensors"]}
    assert shown[1]["files"] == sorted(file.name for file in here.glob("*.bin"))


def test_the_card_names_the_weights(expected: dict[str, str], tmp_path: Path) -> None:
    here = pickled(MISTRAL, tmp_path / "tiny-mistral", 2)
    build(here, tmp_path / "out", "q4_k_m", check=None)
    assert artifacts_in(tmp_path / "out") == expected
    arguments = ["publish", tmp_path / "out", "--repo", "someone/tiny-mistral-GGUF"]
    options = ["--checkpoint", here, "--dry-run", "--card-only", "--force"]
    shown = quantkit(*arguments, *options)
    assert shown.code == 0, shown.err
    for file in here.glob("*.bin"):
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        assert f"| source weights | `{file.name}`, sha256 `{sha256}` |" in shown.out


def test_an_architecture_without_a_family_can_be_opened(tmp_path: Path) -> None:
    """Its tensors are known; what is made of them is the business of whoever describes it."""
    here = pickled(MISTRAL, tmp_path / "tiny-mistral", 2)
    config = json.loads((here / "config.json").read_text())
    config |= {"architectures": ["SomethingNewForCausalLM"], "model_type": "something_new"}
    (here / "config.json").write_text(json.dumps(config))
    found = open_folder(here, list_folder(here))
    assert found.tensors.keys() >= open_checkpoint(MISTRAL).tensors.keys()
    for command in (["fit", here], ["build", here, "-q", "q8_0", "--dry-run"]):
        outcome = quantkit(*command)
        assert outcome.code == 2
        assert "SomethingNewForCausalLM" in outcome.err
