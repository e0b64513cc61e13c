"""What TAB gives, by the protocol of typer's script for bash, and once in bash itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.fitting.hardware import hardware_profiles
from quantkit.fitting.subject import bundled_models
from quantkit.planning.quants import known_groups, known_quants
from tests.cli.command import quantkit

HEAVY = {"torch", "transformers", "llama_cpp", "gguf", "tokenizers", "numba", "numpy"}


def completed(monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """What a line can go on with; a line that ends with a space begins another word."""
    words = line.split(" ")
    monkeypatch.setenv("_QUANTKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    return quantkit().out.split()


@pytest.mark.parametrize("command", ["build x", "fit x", "publish x"])
def test_quants_and_sets(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = {*known_quants(), *known_groups()}
    assert set(completed(monkeypatch, f"quantkit {command} -q ")) == everything
    assert completed(monkeypatch, f"quantkit {command} --quant q4_k_s") == ["q4_k_s"]
    assert completed(monkeypatch, f"quantkit {command} -q f16,iq4") == [
        "f16,iq4_nl", "f16,iq4_xs",
    ]  # fmt: skip


def test_machines_gpus_and_models(monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed(monkeypatch, "quantkit fit x --hardware ") == list(hardware_profiles())
    assert completed(monkeypatch, "quantkit build x --for apple-1") == [
        "apple-128gb", "apple-16gb", "apple-192gb",
    ]  # fmt: skip
    gpus = completed(monkeypatch, "quantkit fit x --gpu ")
    assert "rtx-4090" in gpus
    assert not [name for name in gpus if name.startswith(("apple", "cpu"))]
    assert completed(monkeypatch, "quantkit fit ") == list(bundled_models())
    assert completed(monkeypatch, "quantkit --quiet recipe mixtral") == [
        "mixtral-8x22b", "mixtral-8x7b",
    ]  # fmt: skip


def test_commands_options_and_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed(monkeypatch, "quantkit me") == ["measure"]
    assert completed(monkeypatch, "quantkit calibrate x --overw") == ["--overwrite"]
    assert completed(monkeypatch, "quantkit build x --kernel ") == ["fast", "ggml"]


def test_a_file_is_left_to_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed(monkeypatch, "quantkit build ./") == []


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom quantkit.cli.app import run\n"
        "try: run()\n"
        f"except SystemExit: print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    for words in ("quantkit build x -q q4", "quantkit fit mix"):
        place = str(len(words.split()) - 1)
        bash = {"_QUANTKIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | bash, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == "[]"
        assert len(done.stdout.splitlines()) > 2


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_in_bash() -> None:
    script = """
        eval "$(_QUANTKIT_COMPLETE=source_bash quantkit)"
        COMP_WORDS=(quantkit fit mixtral) COMP_CWORD=2
        _quantkit_completion quantkit
        echo "${COMPREPLY[@]}"
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=os.environ | {"PATH": path}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["mixtral-8x22b", "mixtral-8x7b"]
