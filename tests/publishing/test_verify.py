"""Verification finds every byte that is not as it was built, and signatures of other keys."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import Outcome, quantkit, refusal
from tests.hub_writes import HubStore
from tests.publishing.builds import Q2, Q4, REPO, SOURCE, damage, edit_manifest


def verify(place: object, *options: object) -> Outcome:
    return quantkit("verify", place, *options)


def failure(outcome: Outcome) -> str:
    """The sentence of a verification that failed; the table before it is for people."""
    assert outcome.code == 1, outcome
    line = outcome.err.splitlines()[-1]
    assert line.startswith("Error: ")
    assert line.endswith(".")
    return line


def make_key(folder: Path, name: str = "key") -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture
def download(hub: HubStore, folder: Path, tmp_path: Path) -> Path:
    """A signed repository, downloaded; the key pair lies in ``tmp_path``."""
    from huggingface_hub import snapshot_download

    private, _ = make_key(tmp_path)
    options = ("--checkpoint", SOURCE, "--sign", private)
    assert quantkit("publish", folder, "--repo", REPO, *options).code == 0
    assert private.read_bytes() not in b"".join(hub.repos[REPO].values())
    return Path(snapshot_download(REPO, local_dir=tmp_path / "download"))


def test_a_build(folder: Path) -> None:
    found = json.loads(verify(folder, "--json").out)
    assert found["ok"]
    assert found["read"]
    assert len(found["files"]) == 2
    damage(folder / f"{Q4}.gguf")
    text = failure(verify(folder))
    assert f"1 of 2 files of {folder} are not what was built: {Q4}.gguf (another sha256)" in text
    (folder / f"{Q4}.gguf").unlink()
    with (folder / f"{Q2}.gguf").open("ab") as file:
        file.write(b"x")
    text = failure(verify(folder))
    assert f"{Q4}.gguf (missing)" in text
    assert "bytes instead of" in text


def test_a_signed_download(download: Path, tmp_path: Path) -> None:
    public = tmp_path / "key.pub"
    assert "signature good" in verify(download, "--key", public).out
    assert "signed, not checked" in verify(download).out
    (download / "README.md").write_text("Cards may change.")
    (download / "mine.gguf").write_bytes(b"x")
    outcome = verify(download, "--key", public)
    assert outcome.code == 0
    assert "mine.gguf is not in the manifest" in outcome.err

    _, other = make_key(tmp_path, "other")
    assert "another key than other.pub" in refusal(verify(download, "--key", other), 1)
    assert "is not a public key" in refusal(verify(download, "--key", download / "README.md"))
    assert "cannot be read" in refusal(verify(download, "--key", tmp_path / "none.pem"))
    (download / "model.sig").write_text("{}")
    assert "or is damaged" in refusal(verify(download, "--key", public), 1)
    (download / "model.sig").unlink()
    assert "is not signed" in refusal(verify(download, "--key", public), 1)


@pytest.mark.native  # two starts of another tool
def test_model_signing_itself_accepts_the_signature(download: Path, tmp_path: Path) -> None:
    def check() -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "model_signing", "verify", "key", str(download)]
        options = ["--signature", download / "model.sig", "--public_key", tmp_path / "key.pub"]
        return subprocess.run([*command, *map(str, options)], capture_output=True, check=False)

    assert check().returncode == 0, check()
    damage(download / f"{Q2}.gguf")
    assert check().returncode != 0


def test_a_forger_without_the_key(download: Path, tmp_path: Path) -> None:
    """Whoever changes a file, the manifest and the sums still lacks the signature."""
    import hashlib

    file = download / f"{Q2}.gguf"
    old = hashlib.sha256(file.read_bytes()).hexdigest()
    damage(file)
    new = hashlib.sha256(file.read_bytes()).hexdigest()
    sums = download / "SHA256SUMS"
    manifest = download / "quantkit.json"
    before = hashlib.sha256(manifest.read_bytes()).hexdigest()
    manifest.write_text(manifest.read_text().replace(old, new))
    after = hashlib.sha256(manifest.read_bytes()).hexdigest()
    sums.write_text(sums.read_text().replace(old, new).replace(before, after))
    assert verify(download).code == 0
    text = failure(verify(download, "--key", tmp_path / "key.pub"))
    assert f"{Q2}.gguf (not what was signed)" in text


def test_manifest_and_sums_must_agree(download: Path) -> None:
    (download / "LICENSE").write_text("Mine.")
    sums = download / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(f"{Q2}.gguf", f"{Q4}.gguf.old"))
    text = failure(verify(download))
    assert f"{Q2}.gguf (SHA256SUMS and quantkit.json disagree)" in text
    assert f"{Q4}.gguf.old (missing)" in text


@pytest.mark.usefixtures("download")
def test_a_repository(hub: HubStore, tmp_path: Path) -> None:
    public = tmp_path / "key.pub"
    outcome = verify(REPO, "--key", public)
    assert outcome.code == 0, outcome
    assert "signature good" in outcome.out
    weights = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    served = [path for path in weights if path.endswith(".gguf")]
    assert len(served) == 2  # by the download before
    files = hub.repos[REPO]
    whole = files[f"{Q2}.gguf"]
    files[f"{Q2}.gguf"] = whole[:-1] + b"!"
    assert f"{Q2}.gguf (another sha256)" in failure(verify(REPO))
    files[f"{Q2}.gguf"] = whole[:-1]
    assert "bytes instead of" in failure(verify(REPO))
    del files[f"{Q2}.gguf"]
    assert f"{Q2}.gguf (missing)" in failure(verify(REPO))
    files[f"{Q2}.gguf"] = whole
    assert verify(f"{REPO}@main").code == 0
    del files["quantkit.json"]
    assert "was not published by quantkit" in refusal(verify(REPO))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "..", "C:\\x"])
def test_names_that_lead_elsewhere(folder: Path, name: str) -> None:
    edit_manifest(folder, lambda artifacts: artifacts[Q2]["files"][0].update(name=name))
    assert "is none of its folder's files" in refusal(verify(folder))
    edit_manifest(folder, lambda artifacts: artifacts.pop(Q2))
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
    assert "is not a valid file name" in refusal(verify(folder))


@pytest.mark.usefixtures("hub")
def test_places_that_are_none(tmp_path: Path) -> None:
    assert "has no quantkit.json" in refusal(verify(tmp_path))
    assert "is neither a folder nor a repository" in refusal(verify(tmp_path / "nothing"))
    assert "is not on the Hub" in refusal(verify("someone/Nothing"))
    (tmp_path / "quantkit.json").write_text('{"version": 1, "artifacts": {"a": []}}')
    assert "(Expected `object`, got `array`)" in refusal(verify(tmp_path))


def test_keys_that_are_none(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no key")
    options = ("--checkpoint", SOURCE, "--sign")
    outcome = quantkit("publish", folder, "--repo", REPO, *options, bad, "--dry-run")
    assert "is not a private key to sign with" in refusal(outcome)
    outcome = quantkit("publish", folder, "--repo", REPO, *options, tmp_path / "x", "--dry-run")
    assert "cannot be read" in refusal(outcome)
