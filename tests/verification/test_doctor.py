import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import quantkit
from quantkit.checkpoint.converter import provision
from quantkit.checkpoint.converter.provision import State, converter_state
from quantkit.core.errors import ConverterError
from quantkit.verification.doctor import (
    Finding,
    examine,
    examine_converter,
    examine_trap,
    judge_trap,
)
from tests.cli.command import quantkit as quantkit_command

ROOT = Path(quantkit.__file__).parents[1]


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    found = examine()
    assert len({finding.name for finding in found}) == len(found)
    return {finding.name: finding for finding in found}


def test_a_complete_installation_lacks_nothing(findings: dict[str, Finding]) -> None:
    assert [f for f in findings.values() if f.status == "missing"] == []
    assert all(f.value for f in findings.values())


def test_what_is_reported(findings: dict[str, Finding]) -> None:
    assert findings["quantkit"].value.startswith(f"{quantkit.__version__} (")
    for package in ("torch", "transformers", "bitsandbytes", "matplotlib", "ray"):
        assert findings[package].value
    assert findings["llama-cpp-python"].value.startswith("0.3.")
    assert "ggml_quantize_chunk in " in findings["ggml kernels"].value
    assert Path(findings["ggml kernels"].value.rpartition(" in ")[2]).is_file()
    assert "CPU" in findings["llama.cpp system info"].value
    assert findings["instruction sets"].value != "unknown"
    assert "usable by this process" in findings["cores"].value
    assert "available" in findings["memory"].value
    assert "free in" in findings["disk"].value
    assert {"python", "gguf", "numpy", "processor", "GPU backend"} <= findings.keys()


def test_the_converter_is_looked_for_and_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source, packages = examine_converter(converter_state())
    assert source.name == "converter"
    assert source.value.startswith("llama.cpp of llama-cpp-python 0.3.")
    assert "transformers 4.57.6" in packages.value
    for finding in (source, packages):
        assert "not fetched yet" in finding.value
        assert finding.status == "note"
        assert finding.advice == "quantkit doctor --fetch-converter"
    assert list(tmp_path.iterdir()) == []


def test_a_converter_that_is_there_is_told_with_its_place(tmp_path: Path) -> None:
    state = State(tmp_path, "llama.cpp of x 1", True, True, "transformers 4", "cpython", ())
    assert [(finding.status, finding.value) for finding in examine_converter(state)] == [
        ("ok", f"llama.cpp of x 1 in {tmp_path}"),
        ("ok", f"transformers 4 for cpython in {tmp_path}"),
    ]
    *_, finding = examine_converter(replace(state, lacking=("torch", "regex")))
    assert finding.status == "note"
    assert finding.advice == (
        "llama.cpp's converter needs torch and regex, which are not installed; "
        "pip install 'quantkit-llm[convert]'."
    )


def test_the_doctor_fetches_the_converter_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(say: Callable[[str], None]) -> None:
        say("Fetching.")
        raise ConverterError("It is not to be had.")

    monkeypatch.setattr(provision, "find_converter", refuse)
    outcome = quantkit_command("doctor", "--fetch-converter", "--json")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "Fetching.\nError: It is not to be had.\n"


def test_the_trap_is_tried_for_real() -> None:
    """On a machine with the trap this is a note, elsewhere all is well; never more than that."""
    finding = examine_trap()
    assert finding.status in ("ok", "note")
    assert ("present" in finding.value) == (finding.status == "note")


def test_no_trap() -> None:
    finding = judge_trap(plain=None, extra=None)
    assert (finding.status, finding.advice) == ("ok", None)


def test_the_trap_is_told_with_how_quantkit_avoids_it() -> None:
    crash = "llama.cpp crashed with SIGILL while evaluating the prompt."
    finding = judge_trap(plain=None, extra=crash)
    assert finding.status == "note"
    assert crash in finding.value
    assert "use_extra_bufts=False" in str(finding.advice)


@pytest.mark.parametrize("extra", [None, "llama.cpp crashed with SIGILL while generating."])
def test_a_llama_cpp_that_cannot_run_at_all_is_to_be_reinstalled(extra: str | None) -> None:
    finding = judge_trap(plain="llama.cpp crashed with SIGILL while generating.", extra=extra)
    assert finding.status == "missing"
    assert "CMAKE_ARGS=-DGGML_NATIVE=OFF" in str(finding.advice)


REPORT = """
import json, sys
from dataclasses import asdict
sys.path.insert(0, sys.argv[1])
from quantkit.verification.doctor import examine
print(json.dumps([asdict(finding) for finding in examine()]))
"""


def test_without_any_package_it_still_tells_what_to_install() -> None:
    # -S leaves site-packages out: no numpy, no gguf, no llama_cpp.
    command = [sys.executable, "-S", "-I", "-c", REPORT, str(ROOT)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert out.stderr == ""
    report = {finding["name"]: finding for finding in json.loads(out.stdout)}
    for package in ("gguf", "numpy", "llama-cpp-python", "sentencepiece", "tokenizers"):
        assert report[package]["status"] == "missing"
        assert report[package]["advice"] == f"pip install {package}"
    assert report["AMX trap"]["status"] == "missing"
    assert report["cores"]["status"] == "ok"


def test_the_doctor_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import quantkit.verification.doctor\n"
        "print([m for m in ('numpy', 'gguf', 'llama_cpp', 'torch') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
