"""``build --prove`` and ``smoke --checkpoint``: what they say, write down and refuse."""

import errno
import json
import os
from pathlib import Path

import pytest

from quantkit.verification import proving
from tests.building.builds import at_step
from tests.cli.command import quantkit, refusal
from tests.raw_releases import raw_release
from tests.verification.faults import change_rope_base, with_fault

TINY = Path(__file__).parents[1] / "checkpoints" / "tiny-mixtral"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "out"
    outcome = quantkit("build", TINY, "-q", "q8_0", "--prove", "-o", folder, "--jobs", 1)
    assert outcome.code in (0, None), outcome.err
    assert "Proven against transformers 5" in outcome.err
    return folder


def test_the_manifest_holds_the_proof(built: Path) -> None:
    manifest = json.loads((built / "quantkit.json").read_text())
    [entry] = manifest["artifacts"].values()
    proof = entry["smoke"]["details"]["proof"]
    assert (proof["outcome"], proof["layers"], proof["open"]) == ("proven", 4, [])


def test_what_was_there_already_gets_the_proof_of_a_later_command(built: Path) -> None:
    manifest = built / "quantkit.json"
    proven = manifest.read_text()
    without = json.loads(proven)
    [entry] = without["artifacts"].values()
    del entry["smoke"]["details"]["proof"]
    manifest.write_text(json.dumps(without))
    outcome = quantkit("build", TINY, "-q", "q8_0", "--prove", "-o", built, "--jobs", 1, "--json")
    assert outcome.code in (0, None), outcome.err
    assert json.loads(manifest.read_text()) == json.loads(proven)
    assert '"outcome": "proven"' in outcome.out


def test_smoke_proves_a_file_against_its_checkpoint(built: Path, tmp_path: Path) -> None:
    [file] = built.glob("*.gguf")
    faulty = with_fault(file, tmp_path / "faulty.gguf", change_rope_base)
    outcome = quantkit("smoke", faulty, "--checkpoint", TINY, "--jobs", 1)
    assert outcome.code == 1
    assert "it is not the model: its llama.rope.freq_base is 10000.0, of a" in outcome.err
    outcome = quantkit("smoke", faulty, "--checkpoint", TINY, "--no-prove", "--jobs", 1)
    assert outcome.code in (0, None)
    assert "roven" not in outcome.out
    said = refusal(quantkit("smoke", file, "--prove"))
    assert "--checkpoint FOLDER" in said
    said = quantkit("smoke", file, "--checkpoint", faulty, "--jobs", 1).err
    assert "Nothing is compared with" in said
    assert "faulty.gguf, a GGUF" in said


def test_no_room_for_a_specimen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while it is written: said in a sentence, and nothing of it is left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    sound = proving.build_specimen

    def fail(*_: object) -> None:
        assert list(disk.rglob("*.gguf*"))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def on_a_full_disk(*how: object) -> Path:
        with at_step(10, fail):
            return sound(*how)  # type: ignore[arg-type]

    monkeypatch.setattr(proving, "build_specimen", on_a_full_disk)
    out = tmp_path / "out"
    outcome = quantkit("build", TINY, "-q", "q8_0", "--prove", "-o", out, "--jobs", 1)
    assert outcome.code in (0, None)
    assert f"no room for its specimen of 30.5 MB in {disk}; free some, or set TMPDIR" in outcome.err
    assert "to resume" not in outcome.err
    assert list(out.glob("*.gguf"))
    assert not list(disk.rglob("*.gguf*"))


def test_a_raw_release_is_proven(tmp_path: Path) -> None:
    raw = raw_release(TINY, tmp_path / "raw", "safetensors-stacked")
    out = tmp_path / "out"
    outcome = quantkit("build", raw, "-q", "q8_0", "--prove", "-o", out, "--jobs", 1)
    assert outcome.code in (0, None), outcome.err
    assert "512 tokens, all 4 layers: mean KLD" in outcome.err


def test_a_dry_run_says_what_would_be_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("build", TINY, "-q", "q4_k_m", "--prove", "--dry-run")
    said = quantkit(*command).err
    assert "To be proven first: 512 tokens through all 4 layers" in said
    monkeypatch.setattr(proving, "_room", lambda: 1)
    assert "through the first 1 of 4 layers" in quantkit(*command).err
    monkeypatch.setattr(proving, "lacking", lambda: "It takes PyTorch.")
    assert "Nothing would be proven: It takes PyTorch." in quantkit(*command).err


def test_nothing_is_built_of_what_would_not_be_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = proving.build_specimen

    def faulty(*how: object) -> Path:
        return with_fault(sound(*how), tmp_path / "faulty.gguf", change_rope_base)  # type: ignore[arg-type]

    monkeypatch.setattr(proving, "build_specimen", faulty)
    out = tmp_path / "out"
    outcome = quantkit("build", TINY, "-q", "q4_k_m", "--prove", "-o", out, "--jobs", 1)
    assert outcome.code == 1
    assert "would not be the model, and none was built: llama.cpp's scores are" in outcome.err
    assert not list(out.rglob("*.gguf*"))
