"""`import quantkit`: what it has, what it costs, and that it says what the commands say."""

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import quantkit
from quantkit import MachineOptions, PublishOptions, QuantkitError
from quantkit.api.smoke import Smoked
from quantkit.core.errors import GGUFError, SmokeError, VerificationError
from quantkit.fitting.settings import FitError
from quantkit.publishing.verify import Checked, Verification
from quantkit.verification.smoke import failed
from tests.cli.command import quantkit as command
from tests.cli.command import refusal
from tests.pages.blocks import text_of
from tests.parity.cases import TRAINED

PAGE = "docs/python.md"
BOX = ("--gpu", "24GB", "--ram", "32GB")
# What takes long to import, and what only the command line needs.
HEAVY = {"torch", "transformers", "numba", "llama_cpp", "matplotlib", "numpy", "gguf", "yaml"}
HEAVY |= {"typer", "rich"}
SECONDS = 0.2  # of processor time


def in_a_process(code: str) -> str:
    """What is printed by code in a process that has imported nothing yet."""
    words = [sys.executable, "-c", code]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_importing_it_costs_next_to_nothing() -> None:
    code = (
        "import sys, time; before = set(sys.modules)\n"
        "start = time.process_time()\n"  # time: bounded far away, and of the process alone
        "import quantkit\n"
        "took = time.process_time() - start\n"  # time: as above
        "print(took, *sorted(set(sys.modules) - before))"
    )
    seconds, *modules = in_a_process(code).split()
    assert float(seconds) < SECONDS
    others = [name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names]
    assert others == ["quantkit", "quantkit.core", "quantkit.core.version"]


def test_fit_of_a_bundled_model_imports_nothing_heavy() -> None:
    code = "import sys, quantkit; quantkit.fit('mistral-7b', machine='24GB + 32GB')\n"
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    assert not HEAVY.intersection(in_a_process(code).split())


@pytest.mark.parametrize("name", quantkit.__all__)
def test_every_name_is_there_and_explained(name: str) -> None:
    value = getattr(quantkit, name)
    assert inspect.getdoc(value)
    assert f"quantkit.{name}" in text_of(PAGE)


def test_type_checkers_see_the_same_names() -> None:
    """And no others: what is not there must not pass for anything."""
    tree = ast.parse(Path(quantkit.__file__).read_text(encoding="utf-8"))
    [branch] = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.asname: node.module
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(imported, key=str) == quantkit.__all__
    for name, module in imported.items():
        assert getattr(import_module(str(module)), str(name)) is getattr(quantkit, str(name))
    with pytest.raises(AttributeError, match="no attribute 'quantize'"):
        _ = quantkit.quantize  # type: ignore[attr-defined]  # which is what is tested


def test_fit_is_what_the_command_prints() -> None:
    typed = command("fit", "mistral-7b", *BOX, "--json", "--context", "4096", "--parallel", "2")
    found = quantkit.fit(
        "mistral-7b",
        machine=MachineOptions(gpus=("24GB",), ram="32GB"),
        settings=quantkit.ContextSettings(context=4096, parallel=2),
    )
    numbers = json.loads(json.dumps(found.as_numbers()))
    assert numbers == json.loads(typed.out)
    assert numbers["searched"]["command"].endswith(f"--budget {numbers['searched']['file_bytes']}B")


def test_a_name_alone_is_no_list_of_letters(tmp_path: Path) -> None:
    one, listed = (
        quantkit.plan(TRAINED / "tiny-mixtral", quants, out=tmp_path)
        for quants in ("q8_0,q4_k_m", ["q8_0", "q4_k_m"])
    )
    assert [layout.name for layout in one.layouts] == [layout.name for layout in listed.layouts]
    assert len(one.layouts) == 2
    with pytest.raises(GGUFError, match=r"^.*absent\.gguf does not exist"):
        quantkit.compare("absent.gguf")


def test_a_machine_in_one_line_is_the_machine_in_parts() -> None:
    line = quantkit.fit("mistral-7b", "q4_k_m", machine="24GB + 32GB")
    parts = quantkit.fit(
        "mistral-7b", ["q4_k_m"], machine=MachineOptions(gpus=("24GB",), ram="32GB")
    )
    assert line.as_numbers() == parts.as_numbers()
    assert line.answer.recommended == "q4_k_m"


@pytest.mark.parametrize(
    ("typed", "call"),
    [
        (("fit", "mixtral"), lambda: quantkit.fit("mixtral")),
        (("fit", "absent", "-q", "bnb-nf4"), lambda: quantkit.fit("absent", "bnb-nf4")),
        (
            ("fit", "mistral-7b", "--hardware", "abacus"),
            lambda: quantkit.fit("mistral-7b", machine=MachineOptions(hardware="abacus")),
        ),
        (("smoke", "absent.gguf"), lambda: quantkit.smoke("absent.gguf")),
        (("compare", "absent.gguf"), lambda: quantkit.compare("absent.gguf")),
        (("compare",), lambda: quantkit.compare([])),
        (("verify", "absent"), lambda: quantkit.verify("absent")),
        (
            ("publish", "absent", "--repo", "a/b", "--card-only", "--private"),
            lambda: quantkit.publish("absent", "a/b", card_only=True, private=True),
        ),
        (
            ("publish", "absent", "--repo", "a/b", "--card-only", "--sign", "absent.pem"),
            lambda: quantkit.publish(
                "absent", "a/b", PublishOptions(key=Path("absent.pem")), card_only=True
            ),
        ),
        (
            ("publish", "absent", "--repo", "a/b", "--message", " "),
            lambda: quantkit.publish("absent", "a/b", message=" "),
        ),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_an_error_is_the_sentence_of_the_command(
    typed: tuple[str, ...],
    call: Callable[[], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QuantkitError) as error:
        call()
    assert refusal(command(*typed)) == str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (quantkit.ContextSettings(context=-1), "1 contexts of -1 tokens are none"),
        (quantkit.ContextSettings(parallel=0), "0 contexts of 8192 tokens are none"),
        (quantkit.ContextSettings(parallel=1000), "more than llama.cpp's 256"),
        (quantkit.ContextSettings(kv_type="q9"), "has no type 'q9'; it is f16, q8_0, q4_0"),
    ],
)
def test_settings_that_the_command_line_does_not_let_through(
    settings: quantkit.ContextSettings, words: str
) -> None:
    with pytest.raises(FitError, match=words):
        quantkit.fit("mistral-7b", machine="24GB + 32GB", settings=settings)


def test_a_failure_is_a_result_that_can_be_made_an_error() -> None:
    smoked = Smoked(Path("a.gguf"), failed("it says nothing"), is_as_built=False)
    assert not smoked.ok
    with pytest.raises(SmokeError, match=r"^a\.gguf: it says nothing$"):
        smoked.raise_if_failed()
    files = tuple(Checked(f"{n}.gguf", 1, "", "missing" if n else None) for n in range(6))
    found = Verification("here", (), files, "none", read=True, unlisted=())
    assert not found.ok
    sentence = r"^5 of 6 files of here are not .*1\.gguf \(missing\), .*\) and 2 more; download"
    with pytest.raises(VerificationError, match=sentence):
        found.raise_if_failed()
    Verification("here", (), files[:1], "none", read=True, unlisted=()).raise_if_failed()
