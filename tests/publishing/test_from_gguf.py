"""Publishing quants of a GGUF: what is known of the model is in its keys and in its repository."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit.publishing.metadata import base_of_card, of_metadata
from tests.building.builds import artifacts_in, manifest_of, names_in
from tests.cli.command import Outcome, quantkit, refusal
from tests.encoders import tiny_bert
from tests.gguf_sources import unquantized
from tests.hub_both import serve_both
from tests.hub_server import COMMIT, HubServer, client_of
from tests.hub_writes import WRITER, HubStore
from tests.random_checkpoints import random_checkpoint

ID, REPO = "someone/Model-GGUF", "me/Model-GGUF"
QUANTS = ("-q", "q8_0", "-q", "q4_k_m", "--jobs", "1")
CARD = "---\nlicense: mit\nbase_model: maker/Model\nlanguage: [en, de]\n---\nA GGUF.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of a GGUF in shards, in a folder of it; its keys name a license."""
    made = tmp_path_factory.mktemp("source")
    model = random_checkpoint(made / "Model", "mixtral", num_hidden_layers=1)
    (model / "README.md").write_text("---\nlicense: mit\nlanguage: [fr]\n---\n")
    unquantized(model, made / "repo" / "BF16", name="Model", shard_size=2_200_000)
    (made / "repo" / "README.md").write_text(CARD)
    return made / "repo"


@pytest.fixture(scope="module")
def first(folder: Path) -> Path:
    return min((folder / "BF16").iterdir())


@pytest.fixture
def hub(folder: Path, tmp_path: Path) -> Iterator[HubStore]:
    source, store = HubServer(folder, repo_id=ID), HubStore()
    with serve_both(source, store), client_of(source, tmp_path / "cache", WRITER):
        yield store


def build(source: object, out: Path, *options: object) -> Outcome:
    return quantkit("build", source, *QUANTS, "-o", out, *options)


def test_from_the_hub_to_the_hub(hub: HubStore, first: Path, tmp_path: Path) -> None:
    """The card has what the GGUF's own card and keys say, and names the GGUF and its model."""
    local, out = tmp_path / "local", tmp_path / "out"
    assert build(first, local, "--shard-size", "2MB", "--no-smoke").code == 0
    place = f"{ID}/BF16/{first.name}"
    leave = ("--publish", REPO, "--delete-published", "--shard-size", "2MB")

    done = build(place, out, *leave)

    assert done.code == 0, done.err
    assert names_in(out) == {"quantkit.json"}
    files = hub.repos[REPO]
    assert {name for name in files if name.endswith(".gguf")} == set(artifacts_in(local))
    assert all((local / name).read_bytes() == files[name] for name in artifacts_in(local))
    card = files["README.md"].decode()
    assert "base_model: maker/Model\n" in card
    assert "base_model_relation: quantized\n" in card
    assert "license: mit\n" in card
    assert "language:\n- en\n- de\n" in card
    assert (
        "from [maker/Model](https://huggingface.co/maker/Model), by way of its GGUF in "
        "[someone/Model-GGUF](https://huggingface.co/someone/Model-GGUF)." in card
    )
    assert f"https://huggingface.co/{ID}/tree/{COMMIT}" in card
    assert f"| source weights | `BF16/{first.name}`, sha256 `" in card
    assert f"quantkit build {place}@{COMMIT} \\\n" in card
    verified = quantkit("verify", REPO)
    assert verified.code == 0, verified.err
    assert build(place, out, *leave).code == 0  # nothing is left to do


def test_from_a_file_here(hub: HubStore, first: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = build(first, out, "--publish", REPO)
    assert done.code == 0, done.err
    assert "The card names no base model" in done.err
    card = hub.repos[REPO]["README.md"].decode()
    assert "base_model" not in card.partition("\n---\n")[0]
    assert "license: mit\n" in card
    assert "language:\n- fr\n" in card  # from the GGUF's keys
    assert f"quantkit build {first.name} \\\n" in card
    assert quantkit("verify", out).code == 0

    # What the keys do not say can be said.
    named = quantkit("publish", out, "--repo", "me/other", "--base-model", "maker/Model")
    assert named.code == 0, named.err
    card = hub.repos["me/other"]["README.md"].decode()
    assert "base_model: maker/Model\n" in card
    assert "[maker/Model](https://huggingface.co/maker/Model), by way of its GGUF." in card
    wrong = quantkit("publish", out, "--repo", "me/third", "--license", "apache-2.0")
    assert "--license says apache-2.0, but the model's own card says mit" in refusal(wrong)


@pytest.mark.usefixtures("hub")
def test_another_gguf_is_not_the_source(first: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert build(first, out).code == 0
    same = quantkit("publish", out, "--repo", REPO, "--checkpoint", first, "--dry-run")
    assert same.code == 0, same.err
    other = next(out.glob("*Q8_0.gguf"))
    refused = quantkit("publish", out, "--repo", REPO, "--checkpoint", other, "--dry-run")
    assert "is not the GGUF that was built from" in refusal(refused)


def test_a_license_that_nobody_names(hub: HubStore, tmp_path: Path) -> None:
    import gguf

    bare = tmp_path / "Bare-BF16.gguf"
    model = random_checkpoint(tmp_path / "Bare", "mistral", num_hidden_layers=1)
    unquantized(model, tmp_path / "bare", name="Bare").rename(bare)
    assert "general.license" not in gguf.GGUFReader(bare).fields
    refused = build(bare, tmp_path / "out", "--publish", REPO)
    assert "The license of the model in" in refusal(refused)
    assert not (tmp_path / "out").exists()
    done = build(bare, tmp_path / "out", "--publish", REPO, "--license", "apache-2.0")
    assert done.code == 0, done.err
    assert b"license: apache-2.0\n" in hub.repos[REPO]["README.md"]
    assert set(manifest_of(tmp_path / "out")) == set(
        json.loads(hub.repos[REPO]["quantkit.json"])["artifacts"]
    )


def test_whose_name_a_gguf_has() -> None:
    """What a model was trained from is not what it is, unless it has its name."""

    def base(**keys: object) -> str | None:
        return of_metadata(
            {f"general.{key.replace('__', '.')}": v for key, v in keys.items()}
        ).original

    one = {"base_model__count": 1, "base_model__0__repo_url": "https://huggingface.co/maker/Big-7B"}
    assert base(name="Big 7B", base_model__0__name="Big-7B", **one) == "maker/Big-7B"
    assert base(name="Big 7B Instruct", base_model__0__name="Big 7B", **one) is None
    assert base(name="Big 7B") is None
    assert base(name="x", source__repo_url="https://huggingface.co/maker/X") == "maker/X"
    assert base(name="x", source__huggingface__repository="maker/X") == "maker/X"
    assert base(name="x", source__repo_url="https://example.org/maker/X") is None
    assert base(name="x", source__repo_url=["maker/X"]) is None
    assert base_of_card({"base_model": ["maker/X"]}) == "maker/X"
    assert base_of_card({"base_model": ["maker/X", "maker/Y"]}) is None
    assert base_of_card({"base_model": "../etc"}) is None


def test_the_card_of_a_model_that_embeds(hub: HubStore, tmp_path: Path) -> None:
    source, out = tiny_bert(tmp_path / "Bert-BF16.gguf"), tmp_path / "out"
    assert build(source, out).code == 0
    done = quantkit("compare", out, "--chunks", 4, "--jobs", 1)
    assert done.code in (0, None), done.err
    said = ("--license", "mit", "--base-model", "maker/Bert")
    done = quantkit("publish", out, "--repo", REPO, *said)
    assert done.code == 0, done.err
    card = hub.repos[REPO]["README.md"].decode()
    assert "| mean cosine | worst |" in card
    assert "KLD" not in card
    assert "Cosine: how alike an embedding is to that of `Bert-BF16.gguf`" in card
    assert "--embedding\n" in card
    assert "model.embed(" in card
    assert "llama-cli" not in card
    assert "ollama" not in card
    assert "passed (5 texts embedded)" in card
    assert b"path" not in hub.repos[REPO]["quantkit.json"]
