"""Quants of a GGUF are compared with the very file that they were made from."""

import json
from pathlib import Path

import pytest

from tests.building.builds import manifest_of
from tests.cli.command import Outcome, quantkit, refusal
from tests.gguf_sources import unquantized
from tests.hub_server import HubServer, client_of, serve

TINY = Path(__file__).parents[1] / "checkpoints" / "tiny-mixtral"
FEW = ("--chunks", 2, "--context", 128, "--jobs", 1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The first shard of an unquantized GGUF."""
    return unquantized(TINY, tmp_path / "source", quant="f16", name="Tiny", shard_size=10**7)


def build(source: object, out: Path, *quants: str) -> Outcome:
    wishes = [word for quant in quants for word in ("-q", quant)]
    return quantkit("build", source, *wishes, "-o", out, "--no-smoke", "--jobs", 1)


def reference(outcome: Outcome) -> Path:
    assert outcome.code in (0, None), outcome.err
    return Path(json.loads(outcome.out)["reference"])


def test_the_source_is_the_reference(first: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert build(first, out, "q8_0", "bf16").code == 0
    assert manifest_of(out)["Tiny-Q8_0"]["source"]["path"] == str(first)
    whole = quantkit("compare", out, *FEW, "--json")
    assert reference(whole) == first
    assert len(json.loads(whole.out)["artifacts"]) == 3
    assert reference(quantkit("compare", out / "Tiny-Q8_0.gguf", *FEW, "--json")) == first
    # A wish comes before it.
    wish = quantkit("compare", out, *FEW, "--json", "--reference", "bf16")
    assert reference(wish) == out / "Tiny-BF16.gguf"


def test_a_source_that_is_gone_or_another(first: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert build(first, out, "q8_0").code == 0
    data = first.read_bytes()
    first.write_bytes(data[:-2] + b"\1\1")
    assert refusal(quantkit("compare", out, *FEW)) == (
        f"The source '{first}' is not the one that it was; give it with --reference, or build "
        "bf16 of it as well."
    )
    first.unlink()
    gone = refusal(quantkit("compare", out, *FEW))
    assert gone.startswith(f"The source '{first}' is not there any more; give it with --reference")
    first.write_bytes(data)
    assert build(first, out, "bf16").code == 0
    first.unlink()
    instead = quantkit("compare", out, *FEW, "--json")
    assert reference(instead) == out / "Tiny-BF16.gguf"
    assert "is not there any more; Tiny-BF16.gguf is the reference instead." in instead.err


def test_a_source_on_the_hub_is_one_if_the_cache_has_it(first: Path, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    out, repo = tmp_path / "out", "someone/Tiny-GGUF"
    server = HubServer(first.parent, repo_id=repo)
    with serve(server), client_of(server, tmp_path / "hub"):
        assert build(f"{repo}/{first.name}", out, "q8_0").code == 0
        assert "path" not in manifest_of(out)["Tiny-Q8_0"]["source"]
        text = refusal(quantkit("compare", out, *FEW))
        assert text.startswith(f"The source '{repo}/{first.name}' was read from the Hub and is not")
        for shard in sorted(first.parent.iterdir()):
            path = hf_hub_download(repo, shard.name)
        found = reference(quantkit("compare", out, *FEW, "--json"))
        assert found.name == first.name
        assert found.parent == Path(path).parent
