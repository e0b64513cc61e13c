"""Publishing what llama.cpp's converter described: card and manifest say who it was."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit.checkpoint.converter.own import is_own, without_place
from quantkit.checkpoint.converter.pins import load_pins
from tests.building.builds import artifacts_in, manifest_of, names_in
from tests.cli.command import quantkit
from tests.hub_both import serve_both
from tests.hub_server import COMMIT, HubServer, client_of
from tests.hub_writes import WRITER, HubStore
from tests.large_experts import large_experts

pytestmark = pytest.mark.usefixtures("shared_converter")

ID, REPO = "someone/Model", "me/Model-GGUF"
CARD = "---\nlicense: mit\nlanguage: [en]\ntags: [small]\n---\nA model.\n"
OWN = "llama.cpp in /home/somebody/llama.cpp"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("described") / "Model"
    large_experts(folder, hidden=256, width=256, experts=4, fp8=True)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def built(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    done = quantkit("build", folder, "-q", "q4_k_m", "-o", out)
    assert done.code in (0, None), done.err
    return out


@pytest.fixture
def hub(folder: Path, tmp_path: Path) -> Iterator[HubStore]:
    source, store = HubServer(folder, repo_id=ID), HubStore()
    with serve_both(source, store), client_of(source, tmp_path / "cache", WRITER):
        yield store


def card_of(built: Path, folder: Path) -> str:
    command = ("publish", built, "--repo", REPO, "--checkpoint", folder, "--base-model", ID)
    done = quantkit(*command, "--dry-run", "--card-only")
    assert done.code in (0, None), done.err
    return done.out


def test_from_the_hub_to_the_hub_through_no_disk(
    hub: HubStore, built: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("build", ID, "-q", "q4_k_m", "-o", out, "--publish", REPO, "--delete-published")
    done = quantkit(*command)
    assert done.code == 0, done.err
    assert names_in(out) == {"quantkit.json"}
    files = hub.repos[REPO]
    assert {n for n in files if n.endswith(".gguf")} == set(artifacts_in(built))
    assert all((built / name).read_bytes() == files[name] for name in artifacts_in(built))
    card = files["README.md"].decode()
    assert f"base_model: {ID}\n" in card
    assert "license: mit\n" in card
    assert f"| described by | the converter of {load_pins().name} |" in card
    assert f"quantkit build {ID}@{COMMIT} \\\n  --quant q4_k_m\n" in card
    verified = quantkit("verify", REPO)
    assert verified.code == 0, verified.err


def test_the_card_of_a_folder(folder: Path, built: Path) -> None:
    card = card_of(built, folder)
    assert "license: mit\n" in card
    assert "language:\n- en\n" in card
    assert "- small\n" in card
    assert f"base_model: {ID}\n" in card
    assert f"the converter of {load_pins().name}" in card


def test_where_a_users_own_converter_lies_is_nobodys_business(folder: Path, built: Path) -> None:
    file = built / "quantkit.json"
    before = file.read_bytes()
    manifest = json.loads(before)
    for entry in manifest["artifacts"].values():
        entry["source"] |= {"described_by": f"{OWN} at {'a' * 40}", "mtp": False}
    try:
        file.write_text(json.dumps(manifest))
        card = card_of(built, folder)
    finally:
        file.write_bytes(before)
    assert "somebody" not in card
    assert f"| described by | the converter of llama.cpp of one's own at {'a' * 40} |" in card
    assert " \\\n  --llama-cpp DIR \\\n  --no-mtp\n" in card
    assert manifest_of(built).keys() == manifest["artifacts"].keys()


def test_names_without_their_place() -> None:
    pinned = load_pins().name
    assert (without_place(pinned), is_own(pinned)) == (pinned, False)
    for name in (OWN, f"{OWN} at {'a' * 40}"):
        assert is_own(name)
        assert is_own(without_place(name))
        assert "somebody" not in without_place(name)
        assert without_place(without_place(name)) == without_place(name)
