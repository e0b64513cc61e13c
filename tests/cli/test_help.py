"""What help shows, at any width: whole words, panels, and examples that can be typed."""

import re
import shlex
from functools import cache
from typing import Any

import pytest
import typer

from quantkit.cli.app import COMMANDS, with_commands
from quantkit.cli.examples import EXAMPLES
from quantkit.cli.fit import complete
from quantkit.cli.help import FORMER
from tests.cli.command import quantkit

NAMES = ("", *COMMANDS)
BUILD = (
    *("Arguments", "Common", "Budget", "Quality", "Calibration", "Checks"),
    *("GPTQ", "bitsandbytes", "Source", "Hub", "Cluster"),
)


@cache
def group() -> Any:
    return typer.main.get_command(with_commands())


def params(name: str) -> list[Any]:
    found = group().params if name == "" else group().commands[name].params
    return [param for param in found if not param.hidden]


def page(name: str, columns: int, option: str = "--help") -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        outcome = quantkit(*([name] if name else []), option)
    assert outcome.code in (0, None), outcome
    return outcome.out


def words(text: str) -> set[str]:
    """Everything that is said, without what stands around and between it."""
    return set(re.sub("[\u2500-\u257f,.:|\\]]", " ", text.replace("`", "")).split())


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("name", NAMES)
def test_no_word_is_cut(name: str, columns: int) -> None:
    text = page(name, columns)
    assert max(map(len, text.splitlines())) <= columns
    assert not re.search("\u2026|<|>", text)
    for param in params(name):
        if param.param_type_name == "option":
            assert set(param.opts + param.secondary_opts) - FORMER <= words(text)
        assert words(f"{param.help} {param.metavar or ''}") <= words(text)


def test_a_pipe_and_no_colour_have_no_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    piped = quantkit("build", "--help").out
    assert "\x1b" not in piped
    assert max(map(len, piped.splitlines())) <= 100


@pytest.mark.parametrize("name", NAMES)
def test_panels_and_examples(name: str) -> None:
    text = page(name, 80)
    panels = re.findall("\u256d\u2500 (.+?) \u2500", text)
    assert len(panels) == len(set(panels)) > 0
    assert {"Options", "Common"} & set(panels)
    shown = re.findall("^  (quantkit .*)$", text.split("\nExamples:\n")[1], re.MULTILINE)
    assert shown == [typed for _, typed in EXAMPLES[name]]
    assert len(shown) >= 2


def test_the_panels_of_a_build_come_in_their_order() -> None:
    assert tuple(re.findall("\u256d\u2500 (.+?) \u2500", page("build", 80))) == BUILD


@pytest.mark.parametrize("typed", [typed for some in EXAMPLES.values() for _, typed in some])
def test_an_example_can_be_typed(typed: str) -> None:
    program, name, *rest = shlex.split(typed)
    assert program == "quantkit"
    if name.startswith("-"):
        assert any(name in param.opts for param in params(""))
        return
    arguments = complete([name, *rest])[1:] if name == "fit" else rest
    context = group().commands[name].make_context(name, arguments)  # raises where it is not known
    assert context.args == []


@pytest.mark.parametrize("name", NAMES)
def test_h_is_help(name: str) -> None:
    assert page(name, 80, "-h") == page(name, 80)


def test_without_a_word_it_shows_help() -> None:
    assert quantkit().out == quantkit("--help").out


def test_short_version() -> None:
    assert quantkit("-V").out == quantkit("--version").out


@pytest.mark.parametrize("name", NAMES)
def test_an_option_says_what_it_takes(name: str) -> None:
    for param in params(name):
        if param.param_type_name == "option" and not param.is_flag:
            if name or "completion" not in param.name:  # typer's own, which take nothing
                assert param.metavar, param.name
        elif param.param_type_name == "argument":
            assert param.metavar.isupper(), param.name


def test_former_names_work_and_are_not_shown() -> None:
    shown = {name for name in COMMANDS for one in FORMER if one in page(name, 80)}
    assert shown == set()
    for words_ in (("smoke", "absent.gguf", "--threads", 1), ("compare", "absent", "--plots", "p")):
        outcome = quantkit(*words_)
        assert outcome.code == 2
        assert "absent" in outcome.err
        assert "No such option" not in outcome.err


def test_one_name_for_one_thing() -> None:
    """What is alike in help has the same names everywhere: the first is not another's second."""
    by_name: dict[str, set[str]] = {}
    for name in COMMANDS:
        for param in params(name):
            if param.param_type_name == "option":
                by_name.setdefault(param.name, set()).add(max(set(param.opts) - FORMER, key=len))
    # --text is called the same in all, --threads and --jobs are one thing, and so on.
    assert {name: found for name, found in by_name.items() if len(found) > 1} == {}
    options = set().union(*by_name.values())
    assert not options & {"--threads", "--plots", "--picture", "--output", "--force-overwrite"}
