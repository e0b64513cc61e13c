"""Whatever the width of a console and its encoding, nothing of a table is lost."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

import quantkit.cli
from quantkit.cli.output import show_table, spell
from tests.building.builds import build
from tests.calibration.runs import text_file
from tests.cli.command import quantkit as run
from tests.parity.cases import TRAINED

TINY = TRAINED / "tiny-mixtral"
BOX = ("--gpu", "24GB", "--ram", "64GB")
FEW, TWO = ("--chunks", 1, "--context", 64), ("--chunks", 2, "--context", 64)
WIDTHS = (20, 60)
COMMANDS = {
    "quants": ("quants",),
    "fit": ("fit", "mixtral-8x22b", *BOX),
    "fit a few": ("fit", "mixtral-8x22b", *BOX, "-q", "q4_k_m,q2_k"),
    "hardware": ("fit", "--hardware"),
    "claims": ("fit", "mixtral-8x22b", *BOX, "-q", "q4_k_m", "--documented"),
    "plan": ("build", TINY, "-q", "f16,q8_0,q4_k_m,bnb-nf4,gptq-int4", "--dry-run"),
    "build": ("build", TINY, "-q", "f16,q4_k_m", "--no-smoke", "-o", "{built}"),
    "inspect a checkpoint": ("inspect", TINY),
    "inspect a GGUF": ("inspect", "{gguf}"),
    "inspect a folder": ("inspect", "{bnb}"),
    "fit a folder": ("fit", "{bnb}", *BOX),
    "verify": ("verify", "{built}"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("narrow") / "a-folder-with-a-name-that-is-longer-than-a-console"
    made = build(TINY, out, "f16", "q4_k_m", "bnb-nf4", check=None)
    by_name = {artifact.layout.plan.quant.name: artifact.path for artifact in made}
    return {"built": out, "gguf": by_name["q4_k_m"], "bnb": by_name["bnb-nf4"]}


def words(text: str) -> set[str]:
    """Everything that is said: lines of a box left out, and what stands between headings."""
    return set(re.sub("[\u2500-\u257f|+:]", " ", text).split())


def printed(command: tuple[object, ...], places: dict[str, Path], columns: int | None) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        if columns is not None:
            patch.setenv("COLUMNS", str(columns))
        filled = [str(part).format(**places) for part in command]
        outcome = run(*filled)
    assert outcome.code in (0, None), outcome
    return outcome.out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_narrow_console_loses_nothing(name: str, places: dict[str, Path]) -> None:
    command = COMMANDS[name]
    whole = printed(command, places, None)
    assert "\u2026" not in whole
    for columns in WIDTHS:
        narrow = printed(command, places, columns)
        empty = {"tokens/s"} if name == "build" else set()  # nothing ran
        assert words(whole) - words(narrow) - empty == set(), columns
        assert "\u2026" not in narrow


def test_a_table_that_fits_is_a_table(places: dict[str, Path]) -> None:
    text = printed(COMMANDS["build"], places, 120)
    assert "\u2503 file" in text
    assert "\u2503 file" not in printed(COMMANDS["build"], places, 40)


def test_figures_that_are_measured_are_not_lost(tmp_path: Path, places: dict[str, Path]) -> None:
    """Speeds differ from run to run, so what is looked for are headings and quants."""
    commands = (
        (
            ("compare", "{built}", *FEW, "--jobs", 1),
            ("quant: f16", "verdict: reference", "PPL: ", "99%: ", "same top: ", "RMS \u0394p: "),
        ),
        (
            ("calibrate", TINY, *FEW, "-t", text_file(tmp_path), "-o", tmp_path / "i.gguf"),
            ("layer: 0", "  0: ", "  7: ", "most / mean: "),
        ),
        (
            ("perplexity", TINY, *TWO, "--text", text_file(tmp_path)),
            ("model: tiny-mixtral", "parameters: 7.61M", "perplexity: ", "\u00b1: ", "run: "),
        ),
    )
    for command, expected in commands:
        text = printed(command, places, 30)
        for said in expected:
            assert f"\n{said}" in f"\n{text}" or f"\n  {said.strip()}" in f"\n{text}", (said, text)


def test_cells_keep_their_marks_and_empty_ones_are_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    table = Table(title="A title of more than twenty-four letters", caption="and so on")
    table.add_column("name", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("size", no_wrap=True)
    table.add_row("a" * 20, "[red]bad[/]", "1.23 MB")
    table.add_row("b" * 20, "", "[b]")
    show_table(table)
    assert capsys.readouterr().out.splitlines() == [
        "A title of more than twenty-four letters",
        f"name: {'a' * 20}",
        "  bad",
        "  size: 1.23 MB",
        f"name: {'b' * 20}",
        "  size: ",
        "and so on",
    ]


@pytest.mark.parametrize(
    ("encoding", "command"),
    [
        ("ascii", ("compare", "{built}", *FEW, "--jobs", 1)),
        ("latin-1", ("perplexity", "{gguf}", *TWO)),
    ],
)
def test_what_an_encoding_lacks_is_spelled(
    encoding: str, command: tuple[object, ...], places: dict[str, Path]
) -> None:
    """In a process of its own, since it is stdout that has an encoding."""
    made = subprocess.run(
        [sys.executable, "-m", "quantkit", *(str(part).format(**places) for part in command)],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "200"},
        check=False,
    )
    assert made.returncode == 0, made.stderr
    text = made.stdout.decode(encoding)
    assert ("RMS dp" if encoding == "ascii" else " \u00b1 ") in text
    assert not re.search(r"[\u2500-\u257f]|\\u", text)


def test_spelling_loses_no_letter() -> None:
    said = "a \u00b1 b \u0394p \u2026 \u00e9 \u4e2d \u2192 \U0001f600"
    spell()
    spelled = said.encode("ascii", "quantkit.spell").decode("ascii")
    assert spelled == "a +- b dp ... e \\u4e2d -> \\U0001f600"


def test_no_command_prints_a_table_past_the_one_place() -> None:
    for file in Path(quantkit.cli.__file__).parent.glob("*.py"):
        if file.name == "output.py":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        tables = {
            target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and _is_table(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        printed_names = {
            argument.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "console.print"
            for argument in node.args
            if isinstance(argument, ast.Name)
        }
        assert not tables & printed_names, file


def _is_table(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and "table" in ast.unparse(value.func).lower()
