"""What cannot be done with a GGUF: one sentence each, before anything is written."""

import json
from pathlib import Path

import pytest

from tests.cli.command import quantkit, refusal
from tests.encoders import tiny_bert
from tests.gguf_sources import unquantized
from tests.hub_server import HubServer, client_of, serve

TINY = Path(__file__).parents[1] / "checkpoints" / "tiny-mixtral"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unquantized(TINY, tmp_path_factory.mktemp("source"), name="Tiny")


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        ("build SOURCE -q gptq-int4 -o OUT", "only other GGUFs can be made of it"),
        ("build SOURCE -q q4_k_m,bnb-nf4 -o OUT", "only other GGUFs can be made of it"),
        ("build SOURCE -q q4_k_m -q gptq-int4 -o OUT", "only other GGUFs can be made of it"),
        ("build SOURCE -q bnb-nf4 --dry-run", "only other GGUFs can be made of it"),
        ("densify SOURCE --expert 0 -o OUT", "give the checkpoint that it was converted from"),
        ("build SOURCE -q q4_k_m -o OUT --prove", "give the checkpoint that it was converted from"),
    ],
)
def test_what_needs_a_checkpoint(source: Path, tmp_path: Path, arguments: str, fix: str) -> None:
    pytest.importorskip("torch")
    words = [
        str({"SOURCE": source, "OUT": tmp_path / "out"}.get(word, word))
        for word in arguments.split()
    ]
    text = refusal(quantkit(*words))
    assert text.startswith(f"{source} is a GGUF, ")
    assert fix in text
    assert not list(tmp_path.iterdir())


def test_on_the_hub_it_is_not_fetched_first(source: Path, tmp_path: Path) -> None:
    server = HubServer(source.parent, repo_id="someone/Tiny-GGUF")
    with serve(server), client_of(server, tmp_path / "cache"):
        place = f"someone/Tiny-GGUF/{source.name}"
        wish = ("--imatrix", "auto", "-o", tmp_path / "out")
        text = refusal(quantkit("build", place, "-q", "q4_k_m", *wish))
        assert "download it with hf download someone/Tiny-GGUF" in text
        assert server.bytes_sent < 2 * 10**6


def test_a_gguf_for_its_own_tokens_is_no_checkpoint(source: Path) -> None:
    """Its vocabulary is copied: there is nothing to compare with, and no failure."""
    done = quantkit("smoke", source, "--checkpoint", source, "--jobs", 1)
    assert done.code in (0, None), done.err


# quantkit inspect.


def test_inspect_reads_all_shards(tmp_path: Path) -> None:
    first = unquantized(TINY, tmp_path / "split", name="Tiny", shard_size=10**7)
    whole = unquantized(TINY, tmp_path / "whole", name="Tiny")
    split, one = (json.loads(quantkit("inspect", p, "--json").out) for p in (first, whole))
    assert split["tensors"] == one["tensors"]
    assert split["parameters"] == one["parameters"]
    assert split["files"] == [file.name for file in sorted(first.parent.iterdir())]
    assert split["bytes"] == sum(file.stat().st_size for file in first.parent.iterdir())
    assert (split["kind"], split["family"]) == ("GGUF", "llama")
    second = sorted(first.parent.iterdir())[1]
    alone = json.loads(quantkit("inspect", second, "--json").out)
    assert alone["metadata"]["split.no"] == 1
    assert alone["parameters"] < one["parameters"]


def test_inspect_on_the_hub_reads_the_header(source: Path, tmp_path: Path) -> None:
    server = HubServer(source.parent, repo_id="someone/Tiny-GGUF")
    with serve(server), client_of(server, tmp_path / "cache"):
        found = json.loads(quantkit("inspect", f"someone/Tiny-GGUF/{source.name}", "--json").out)
        assert server.bytes_sent < 2 * 10**6
    here = json.loads(quantkit("inspect", source, "--json").out)
    assert found.pop("path") == f"someone/Tiny-GGUF/{source.name}"
    here.pop("path")
    assert found == here
    assert found["bytes"] == source.stat().st_size


def test_inspect_of_an_architecture_that_nobody_knows(tmp_path: Path) -> None:
    """There is nothing to build, but its header can be read."""
    file = tiny_bert(tmp_path / "Odd-BF16.gguf")
    file.write_bytes(
        file.read_bytes().replace(b"\x04\0\0\0\0\0\0\0bert", b"\x04\0\0\0\0\0\0\0odd1", 1)
    )
    found = json.loads(quantkit("inspect", file, "--json").out)
    assert found["family"] == "odd1"
    assert found["parameters"] > 10**5
    text = refusal(quantkit("build", file, "-q", "q8_0", "-o", tmp_path / "out"))
    assert "odd1" in text
