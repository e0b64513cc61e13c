"""llama.cpp's converter where it is not to be had, or is asked for what is not there.

Each is refused with a sentence, and leaves nothing.
"""

import json
from pathlib import Path

import pytest

from quantkit.checkpoint.converter import provision
from tests.cli.command import quantkit, refusal
from tests.random_checkpoints import random_checkpoint


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A checkpoint of an architecture that no family of ours describes."""
    folder = random_checkpoint(tmp_path / "Model", "mistral", num_hidden_layers=1)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(foreign: Path, *options: object) -> str:
    out = foreign.with_name("out")
    said = refusal(quantkit("build", foreign, "-q", "q8_0", "--no-smoke", "-o", out, *options))
    assert not out.exists()
    return said


def test_extra_that_is_missing(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = provision.is_installed
    monkeypatch.setattr(provision, "is_installed", lambda name: name != "torch" and there(name))

    assert "needs torch, which is not installed; pip install" in refused(foreign)


def test_folder_that_is_no_llama_cpp(foreign: Path, tmp_path: Path) -> None:
    assert "is no complete folder of llama.cpp" in refused(foreign, "--llama-cpp", tmp_path)
    assert "is not a folder" in refused(foreign, "--llama-cpp", tmp_path / "nowhere")


def test_source_that_is_not_to_be_had(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    out = tmp_path / "out"

    said = quantkit("build", foreign, "-q", "q8_0", "--no-smoke", "-o", out)

    assert said.code == 2
    fetching, error = said.err.splitlines()
    assert fetching.startswith("Fetching llama.cpp's converter (llama-cpp-python ")
    assert error.startswith("Error: The source archive of llama-cpp-python ")
    assert "see docs/converter.md" in error
    assert not out.exists()
    assert not list(cache.rglob("base.py"))


@pytest.mark.native
def test_further_tokens_of_a_model_that_predicts_none(foreign: Path) -> None:
    for option in ("--mtp", "--no-mtp"):
        assert "Qwen3ForCausalLM has none that the converter knows" in refused(foreign, option)


@pytest.mark.native
def test_architecture_that_nobody_knows(foreign: Path) -> None:
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps({**config, "architectures": ["XForCausalLM"]}))

    said = refused(foreign)

    version = provision.converter_state().version
    assert f"the architecture XForCausalLM, which neither quantkit nor {version} knows" in said
    assert "give a GGUF of it that a newer llama.cpp made" in said
    assert "--llama-cpp" in said
