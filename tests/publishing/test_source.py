"""What is known of the original: from its folder, from the Hub, from the artifacts; no more."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from quantkit.core.errors import PublishError
from quantkit.publishing.layout import PublishedArtifact, find_artifacts
from quantkit.publishing.metadata import SourceFacts
from quantkit.publishing.source import find_source
from tests.cli.command import quantkit, refusal
from tests.hub_writes import Commit, HubStore
from tests.publishing.builds import Q2, Q4, REPO, SOURCE, comparison, edit_manifest
from tests.publishing.test_card import HOSTILE

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SOURCE, tmp_path / "checkpoint"))


@pytest.fixture
def artifacts(folder: Path) -> tuple[PublishedArtifact, ...]:
    return find_artifacts(folder, REPO)


def test_from_the_artifact_alone(artifacts: tuple[PublishedArtifact, ...]) -> None:
    found = find_source(artifacts, None)
    assert found.license == "apache-2.0"
    assert found.languages == ("en",)
    assert found.tags == ("test", "tiny", "moe")
    assert found.pipeline_tag == "text-generation"
    assert dict(found.special_tokens) == {"bos_token": "<s>", "eos_token": "</s>"}
    assert found.repo_id is None


def test_from_a_folder(artifacts: tuple[PublishedArtifact, ...], checkpoint: Path) -> None:
    (checkpoint / "LICENSE").write_text("Do what you like.\n")
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    card = "---\nlicense: other\nlicense_name: acme-1.1\nlicense_link: https://example.org/l\n"
    card += "language: [en, de]\ndatasets: [some/corpus]\ntags: [moe]\n---\n"
    (checkpoint / "README.md").write_text(card)
    assert find_source(artifacts, str(checkpoint)) == SourceFacts(
        license="other",
        license_name="acme-1.1",
        license_link="https://example.org/l",
        license_text=b"Do what you like.\n",
        languages=("en", "de"),
        tags=("moe",),
        datasets=("some/corpus",),
        pipeline_tag="text-generation",
        chat_template=TEMPLATE,
        special_tokens=(("bos_token", "<s>"), ("eos_token", "</s>")),
    )


def test_from_the_hub(
    hub: HubStore, folder: Path, artifacts: tuple[PublishedArtifact, ...]
) -> None:
    files = {path.name: path.read_bytes() for path in SOURCE.iterdir() if path.is_file()}
    hub.repos["original/Model"], hub.commits["original/Model"] = files, []
    hub.private["original/Model"] = False
    found = find_source(artifacts, "original/Model")
    assert found.repo_id == "original/Model"
    assert found.commit == hub.head("original/Model")
    assert found.verified
    sent = [path for method, path in hub.requests if "safetensors" in path]
    assert not sent
    edit_manifest(
        folder, lambda a: a[Q4]["source"].update(repo_id="original/Model", commit=found.commit)
    )
    again = find_source(find_artifacts(folder, REPO), None)
    assert again == found
    assert quantkit("publish", folder, "--repo", REPO).code == 0
    card = hub.repos[REPO]["README.md"].decode()
    assert "base_model: original/Model" in card
    assert f"`{found.commit}`" in card
    assert "all weights that were read have the sha256 that the Hub lists there" in card

    files["model-00001-of-00002.safetensors"] += b"x"
    with pytest.raises(PublishError, match=r"its model-00001-of-00002\.safetensors differs"):
        find_source(artifacts, "original/Model")
    files["config.json"] = b"{}"
    hub.commits["original/Model"].append(Commit("Another", ("config.json",)))
    with pytest.raises(PublishError, match=r"its config\.json differs"):
        find_source(artifacts, "original/Model")
    with pytest.raises(PublishError, match="There is no checkpoint"):
        find_source(artifacts, "../x/y")


def test_another_checkpoint(artifacts: tuple[PublishedArtifact, ...], checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    with pytest.raises(PublishError, match="is not the checkpoint that was built from"):
        find_source(artifacts, str(checkpoint))


def test_hostile_sources(hub: HubStore, folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Nothing of it is run, followed or published."""
    secret = tmp_path / "secret"
    secret.write_text("The key to everything.")
    (checkpoint / "LICENSE").symlink_to(secret)
    command = ("publish", folder, "--repo", REPO, "--checkpoint", checkpoint)
    assert "leads out of its folder" in refusal(quantkit(*command))
    (checkpoint / "LICENSE").unlink()
    front = {
        "license": "mit",
        "license_link": "javascript:alert(1)",
        "language": [HOSTILE, "en", {"a": 1}],
        "tags": [HOSTILE, "fine", None],
        "datasets": HOSTILE,
        "pipeline_tag": [HOSTILE],
    }
    card = f"---\n{json.dumps(front)}\n---\n{HOSTILE}"
    (checkpoint / "README.md").write_text(card)
    touch = tmp_path / "pwned"
    code = f"{{{{ cycler.__init__.__globals__['os'].system('touch {touch}') }}}}"
    (checkpoint / "chat_template.jinja").write_text(code)
    outcome = quantkit(*command)
    assert outcome.code == 0, outcome
    assert "does not render in the sandbox" in outcome.err
    assert not touch.exists()
    said = b"".join(hub.repos[REPO].values())
    made = hub.repos[REPO]["README.md"].decode()
    assert b"The key to everything" not in said
    assert "__class__" not in made
    assert "javascript" not in made
    assert "Prompt format" not in made
    assert "- fine" in made


@pytest.mark.parametrize("front", ["---\n- a\n---\n", "---\n{{{{\n---\n", "---\n!!python/x\n---\n"])
def test_cards_that_are_none(
    artifacts: tuple[PublishedArtifact, ...], checkpoint: Path, front: str
) -> None:
    (checkpoint / "README.md").write_text(front)
    assert find_source(artifacts, str(checkpoint)).license == "apache-2.0"  # the artifact's word


def test_an_importance_matrix_and_figures(hub: HubStore, folder: Path) -> None:
    data = b"not a GGUF, but the very file"
    (folder / "imatrix.gguf").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    imatrix = {"file": "imatrix.gguf", "sha256": sha256}
    edit_manifest(folder, lambda a: [a[name].update(imatrix=imatrix) for name in (Q2, Q4)])
    (folder / "compare.json").write_text(json.dumps(comparison(folder)))
    options = ("publish", folder, "--repo", REPO, "--checkpoint", SOURCE)
    assert quantkit(*options).code == 0
    files = hub.repos[REPO]
    assert files["imatrix.gguf"] == data
    assert files["size-against-kld.png"].startswith(b"\x89PNG")
    card = files["README.md"].decode()
    assert f"| importance matrix | `imatrix.gguf`, in this repository, sha256 `{sha256}` |" in card
    assert "0.01234 \u00b1 0.00012" in card
    assert "![Size against divergence from the reference](size-against-kld.png)" in card
    (folder / "imatrix.gguf").write_bytes(b"another")
    assert "is not the importance matrix that was used" in quantkit(*options, "--dry-run").err
    import os

    os.utime(folder / "compare.json", (0, 0))
    assert "is older than" in refusal(quantkit(*options, "--dry-run"))
    (folder / "compare.json").write_text('{"artifacts": 3}')
    assert "is not what this version" in refusal(quantkit(*options, "--dry-run"))
    (folder / "compare.json").write_text("[")
    assert "is not JSON" in refusal(quantkit(*options, "--dry-run"))
