"""Builds become repositories: whole, in order, once, and not at all where they should not."""

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from quantkit.verification.smoke import smoke
from tests.building.disks import SmallDisk
from tests.cli.command import Outcome, quantkit, refusal
from tests.hub_writes import READER, WRITER, HubStore
from tests.publishing.builds import Q2, Q4, REPO, SOURCE, comparison, damage, edit_manifest

OPTIONS = ("--checkpoint", SOURCE)
FILES = {f"{Q4}.gguf", f"{Q2}.gguf", "README.md", "SHA256SUMS", "quantkit.json", ".gitattributes"}


def publish(folder: Path, *options: object, repo: str = REPO) -> Outcome:
    return quantkit("publish", folder, "--repo", repo, *OPTIONS, *options)


def refused(outcome: Outcome, hub: HubStore, code: int = 2) -> str:
    """The sentence; nothing was written."""
    text = refusal(outcome, code)
    assert not any(hub.commits.values())
    return text


def test_publish_download_verify_run(hub: HubStore, folder: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard, snapshot_download

    outcome = publish(folder, "--private")
    assert outcome.code == 0, outcome
    assert set(hub.repos[REPO]) == FILES
    assert hub.private[REPO]
    order = [path for commit in hub.commits[REPO] for path in commit.paths]
    assert order[:2] == [f"{Q4}.gguf", f"{Q2}.gguf"]
    assert order[-1] == "README.md"
    copy = Path(snapshot_download(REPO, local_dir=tmp_path / "download"))
    assert quantkit("verify", copy).code == 0
    assert quantkit("verify", REPO).code == 0
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=copy, check=True)
    assert smoke(copy / f"{Q4}.gguf", threads=1).ok
    card = ModelCard.load(copy / "README.md")
    card.data.to_dict()
    assert card.data.license == "apache-2.0"
    assert card.data.language == ["en"]
    assert {"moe", "gguf"} <= set(card.data.tags)

    again = publish(folder)
    assert again.code == 0
    assert "was there already" in again.out
    assert sum(hub.received.values()) == sum(
        (folder / f"{name}.gguf").stat().st_size for name in (Q4, Q2)
    )
    assert len(hub.commits[REPO]) == 4


def test_dry_run(hub: HubStore, folder: Path) -> None:
    outcome = publish(folder, "--dry-run", "--json")
    plan = json.loads(outcome.out)
    assert not hub.requests
    real = json.loads(publish(folder, "--json").out)
    for files in (plan["files"], real["files"]):
        for file in files:
            del file["sent"]
    assert plan["files"] == real["files"]
    assert {file["path"] for file in plan["files"]} == FILES - {".gitattributes"}
    for file in plan["files"]:
        data = hub.repos[REPO][file["path"]]
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
    card = publish(folder, "--dry-run", "--card-only")
    assert card.out.encode() == hub.repos[REPO]["README.md"]


def test_killed_twice_in_mid_upload(hub: HubStore, folder: Path, tmp_path: Path) -> None:
    """The server kills the client half-way through the first file, then half-way the second."""
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.gguf")}
    running: list[subprocess.Popen[bytes]] = []
    killed: list[str] = []

    def kill(oid: str, received: int) -> None:
        n = len(hub.received)
        if len(killed) == n < 2 and received > 10**6:
            killed.append(oid)
            os.kill(running[-1].pid, signal.SIGKILL)

    hub.on_upload = kill
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": WRITER,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(root),
    }
    command = [sys.executable, "-m", "quantkit", "publish", str(folder), "--repo", REPO]
    codes = []
    for _ in range(3):
        arguments = [*command, "--checkpoint", str(SOURCE)]
        running.append(
            subprocess.Popen(
                arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
        said, _ = running[-1].communicate()
        codes.append(running[-1].returncode)
        assert b"Traceback" not in said
        assert WRITER.encode() not in said
        assert "README.md" not in hub.repos[REPO] or codes[-1] == 0
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert len(set(killed)) == 2
    assert set(hub.repos[REPO]) == FILES
    # Every file arrived whole exactly once.
    assert sorted(hub.received.values()) == sorted(sizes.values())


def test_the_token_stays_in_its_header(hub: HubStore, folder: Path, tmp_path: Path) -> None:
    outcome = publish(folder, "--json")
    said = [outcome.out.encode(), outcome.err.encode(), *hub.said, *hub.repos[REPO].values()]
    said += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(said) > 20
    assert not any(WRITER.encode() in text for text in said)


def test_no_rights_a_wrong_token_no_network(
    hub: HubStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "may not write to" in refused(publish(folder), hub)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not accept the token" in refused(publish(folder), hub)


def test_a_repository_with_other_files(hub: HubStore, folder: Path) -> None:
    theirs = {"README.md": b"# Mine\n", "notes.txt": b"Keep this.\n"}
    hub.repos[REPO], hub.commits[REPO], hub.private[REPO] = dict(theirs), [], False
    text = refused(publish(folder), hub)
    assert "exists and holds other files (README.md, notes.txt)" in text
    assert hub.repos[REPO] == theirs


def test_an_earlier_publication_is_not_forgotten(hub: HubStore, folder: Path) -> None:
    assert publish(folder).code == 0
    before = dict(hub.repos[REPO])
    assert publish(folder, "--quant", "q4_k_m").code == 0
    assert hub.repos[REPO] == before
    hub.repos[REPO]["extra.txt"] = b"Added by hand."
    assert publish(folder).code == 0
    assert hub.repos[REPO] == before | {"extra.txt": b"Added by hand."}


def test_one_more_quant_is_added_to_a_repository(
    hub: HubStore, folder: Path, tmp_path: Path
) -> None:
    """From a folder that holds nothing but that one: all is as if both had come at once."""
    assert publish(folder).code == 0
    at_once = dict(hub.repos[REPO])
    other = f"{REPO}-2"
    for quant, stem in (("q2_k", Q2), ("q4_k_m", Q4)):
        alone = tmp_path / quant
        alone.mkdir()
        (alone / f"{stem}.gguf").hardlink_to(folder / f"{stem}.gguf")
        entry = json.loads((folder / "quantkit.json").read_text())["artifacts"][stem]
        manifest = {"version": 1, "artifacts": {stem: entry}}
        (alone / "quantkit.json").write_text(json.dumps(manifest))
        outcome = publish(alone, repo=other)
        assert outcome.code == 0, outcome
    both = hub.repos[other]
    assert both.keys() == at_once.keys()
    for path in (f"{Q2}.gguf", f"{Q4}.gguf", "SHA256SUMS", "quantkit.json"):
        expected = json.loads(at_once[path]) if path.endswith("json") else at_once[path]
        assert (json.loads(both[path]) if path.endswith("json") else both[path]) == expected, path
    card = (
        both["README.md"]
        .decode()
        .replace(other, REPO)
        .replace(other.rpartition("/")[2], REPO.rpartition("/")[2])
    )
    assert card == at_once["README.md"].decode()
    assert quantkit("verify", other).code == 0


def test_what_is_of_other_weights_is_not_added(hub: HubStore, folder: Path, tmp_path: Path) -> None:
    assert publish(folder, "-q", "q4_k_m").code == 0
    before = dict(hub.repos[REPO])
    manifest = json.loads((folder / "quantkit.json").read_text())
    entry = manifest["artifacts"][Q2]
    entry["source"]["weights"][0]["sha256"] = "0" * 64
    (tmp_path / f"{Q2}.gguf").hardlink_to(folder / f"{Q2}.gguf")
    text = json.dumps({"version": 1, "artifacts": {Q2: entry}})
    (tmp_path / "quantkit.json").write_text(text)
    outcome = quantkit("publish", tmp_path, "--repo", REPO, "--license", "apache-2.0")
    assert "which was made from other weights" in refusal(outcome)
    assert hub.repos[REPO] == before


def test_the_card_alone(hub: HubStore, folder: Path) -> None:
    assert "is not on the Hub" in refusal(publish(folder, "--card-only"))
    assert publish(folder).code == 0
    first = hub.repos[REPO]["README.md"]
    changed = publish(folder, "--card-only", "--base-model", "original/Model", "--message", "Base")
    assert changed.code == 0
    assert hub.commits[REPO][-1].paths == ("README.md",)
    assert hub.commits[REPO][-1].message == "Base"
    assert b"base_model: original/Model" in hub.repos[REPO]["README.md"]
    assert first != hub.repos[REPO]["README.md"]
    del hub.repos[REPO][f"{Q2}.gguf"]
    assert "does not hold what the card would describe" in refusal(publish(folder, "--card-only"))


def test_what_passed_no_smoke_test(hub: HubStore, folder: Path) -> None:
    edit_manifest(folder, lambda artifacts: artifacts[Q2].pop("smoke"))
    assert f"{Q2} did not pass a smoke test" in refused(publish(folder), hub)
    assert publish(folder, "--force").code == 0
    card = hub.repos[REPO]["README.md"].decode()
    assert f"Published without a passing smoke test: `{Q2}`" in card
    assert f"`{Q2}`: not run" in card


def test_files_that_are_not_the_manifests(hub: HubStore, folder: Path) -> None:
    damage(folder / f"{Q2}.gguf")
    text = refused(publish(folder), hub)
    assert f"does not match the files ({Q2}.gguf: another sha256)" in text
    (folder / f"{Q2}.gguf").unlink()
    assert "missing" in refused(publish(folder), hub)
    edit_manifest(folder, lambda artifacts: artifacts[Q4]["files"][0].update(sha256="no"))
    assert "this version of quantkit did not write" in refused(publish(folder), hub)
    (folder / "quantkit.json").unlink()
    assert "has no quantkit.json" in refused(publish(folder), hub)


@pytest.mark.parametrize(
    ("card", "options", "sentence"),
    [
        ("# A model\n", (), "is not known"),
        ("---\nlicense: cc-by-nc-nd-4.0\n---\n", (), "does not allow changed versions"),
        (
            "---\nlicense: other\nlicense_name: acme-proprietary\n---\n",
            (),
            "does not allow changed versions",
        ),
        ("---\nlicense: mit\n---\n", ("--license", "apache-2.0"), "own card says mit"),
    ],
)
def test_licenses_that_are_missing_or_forbid(
    hub: HubStore,
    folder: Path,
    tmp_path: Path,
    card: str,
    options: tuple[str, ...],
    sentence: str,
) -> None:
    import shutil

    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(SOURCE, checkpoint)
    (checkpoint / "README.md").write_text(card)
    # What the GGUFs say of themselves would be known too.
    for name in (Q4, Q2):
        _forget_license(folder, name)
    outcome = quantkit("publish", folder, "--repo", REPO, "--checkpoint", checkpoint, *options)
    assert sentence in refused(outcome, hub)
    assert "--license" in refused(publish_without_source(folder), hub)


def publish_without_source(folder: Path) -> Outcome:
    return quantkit("publish", folder, "--repo", REPO)


def _forget_license(folder: Path, name: str) -> None:
    file = folder / f"{name}.gguf"
    data = file.read_bytes().replace(b"general.license", b"general.without")
    file.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    edit_manifest(folder, lambda artifacts: artifacts[name]["files"][0].update(sha256=sha256))


@pytest.mark.parametrize(
    "repo", ["Model", "a/b/c", "some one/Model", "someone/a..b", "someone/-x", "someone/x.git"]
)
def test_names_that_break_the_rules(hub: HubStore, folder: Path, repo: str) -> None:
    assert "is not a name for a repository" in refused(publish(folder, repo=repo), hub)
    assert not hub.repos


@pytest.mark.parametrize(
    "name",
    ["../../etc/x-Q2_K.gguf", "/etc/x-Q2_K.gguf", "a\\b-Q2_K.gguf", ".git/x-Q2_K.gguf",
     "{{ 7*7 }}-Q2_K.gguf", "a b-Q2_K.gguf", "README.md/x-Q2_K.gguf/"],
)  # fmt: skip
def test_malicious_file_names(hub: HubStore, folder: Path, name: str) -> None:
    edit_manifest(folder, lambda artifacts: artifacts[Q2]["files"][0].update(name=name))
    sentence = refused(publish(folder), hub)
    assert re.search(
        "is not a valid file name in a repository|is none of its folder's files", sentence
    )


def test_names_of_ggufs(hub: HubStore, folder: Path) -> None:
    edit_manifest(folder, lambda artifacts: artifacts[Q2]["files"][0].update(name="model.gguf"))
    assert "must end with -Q2_K.gguf" in refused(publish(folder), hub)
    edit_manifest(folder, lambda artifacts: artifacts[Q2]["files"][0].update(bytes=60 * 10**9))
    assert "--shard-size" in refused(publish(folder), hub)


def test_no_disk_here(
    hub: HubStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is needed where llama.cpp is asked and the picture is drawn, for temporary files."""
    disk = SmallDisk(tmp_path / "disk", monkeypatch)
    (folder / "compare.json").write_text(json.dumps(comparison(folder)))
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    try:
        if disk.is_mounted:
            disk.fill()
        else:  # this process may not mount one
            monkeypatch.setattr("tempfile.mkdtemp", _full)
        assert "No space left on device" in refused(publish(folder), hub)
    finally:
        disk.unmount()
    assert not hub.repos


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize(
    ("status", "sentence"), [(507, "has no room"), (429, "limits the rate"), (500, "answered 500")]
)
def test_a_hub_that_takes_no_more(hub: HubStore, folder: Path, status: int, sentence: str) -> None:
    second = hashlib.sha256((folder / f"{Q2}.gguf").read_bytes()).hexdigest()
    hub.fail("PUT", f"/lfs/{second}", status)
    assert sentence in refusal(publish(folder), 1)
    assert set(hub.repos[REPO]) == {".gitattributes", f"{Q4}.gguf"}  # nothing lost, no card
    hub.faults.clear()
    assert publish(folder).code == 0
    assert set(hub.received.values()) == {p.stat().st_size for p in folder.glob("*.gguf")}
