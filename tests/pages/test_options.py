"""Every command and option that a page names is there, wherever it stands on the page."""

import re
import tomllib
from functools import cache

import pytest

from tests.pages.blocks import PAGES, ROOT, Block, blocks_of, said_between_backquotes

_OPTION = re.compile(r"(?<![\w/.-])(--[a-z][\w-]*|-[a-zA-Z])(?![\w-])")
_QUANTKIT = re.compile(r"(?:^|[\s(/])(?<!uninstall )quantkit +([a-z]+)\b")
_BENCHMARK = re.compile(r"python(?: -m)? (benchmarks[./]\w+?)(?:\.py)?(?=\s|$)")
_SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
_FENCED = ("console", "sh", "text", "")

# Options of other programs that pages name without them.
_OF_OTHERS = {
    "llama.cpp's converter": "--outtype",
    "llama.cpp": "--chat-template-file --fit-target --swa-full --no-mmproj-offload --tensor-split "
    "--n-cpu-moe --tensor-type-file --kl-divergence-base -ctk -ctv -ngl -ub -v",
    "pip": "--no-deps --no-binary",
    "pytest, typer": "--help -k -m",
    "compilers": "-march",
}  # fmt: skip


@cache
def options() -> dict[str, set[str]]:
    """The options of each command of quantkit."""
    import typer

    from quantkit.cli.app import app
    from quantkit.cli.help import FORMER

    group = typer.main.get_command(app)
    return {
        name: {"-h", "--help", *(o for p in command.params for o in (*p.opts, *p.secondary_opts))}
        - FORMER
        for name, command in group.commands.items()  # type: ignore[attr-defined]  # a group
    }


@cache
def of_benchmark(name: str) -> set[str]:
    """The options that are in a script's source."""
    source = (ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
    found = re.findall(r'"(--?[a-z][\w-]*)"([^()]*)', source)
    switches = {f"--no-{name[2:]}" for name, more in found if "BooleanOptional" in more}
    return {"--help", *(name for name, _ in found), *switches}


@cache
def of_benchmarks() -> set[str]:
    return set().union(*(of_benchmark(f"benchmarks.{file.stem}") for file in _SCRIPTS))


def unknown(text: str) -> list[str]:
    """What is wrong with commands in a text: each of quantkit's, each benchmark, to its end."""
    wrong = []
    text = re.sub(r"\\\n", " ", text)
    for line in re.split(r"\n(?! +[\[-])|&&|(?<!\w)\| |;", text):
        line = re.sub(r"(?<!\S)#.*", "", line)
        command, script = _QUANTKIT.search(line), _BENCHMARK.search(line)
        if command:
            name, known = command[1], options().get(command[1])
        elif script:
            name, known = script[1], of_benchmark(script[1].replace("/", "."))
        else:
            continue
        if known is None:
            wrong.append(f"there is no command {name}")
            continue
        rest = line[(command or script).end() :]  # type: ignore[union-attr]  # one of them
        wrong += [f"{name} has no {found}" for found in _OPTION.findall(rest) if found not in known]
    return wrong


def loose(span: str) -> list[str]:
    """What is wrong with words that begin with an option, or with a command but not `quantkit`."""
    first = span.split()[0]
    if first in options() and "--" in span:
        return unknown(f"quantkit {span}")
    if not first.startswith("-"):
        return []
    known = of_benchmarks().union(*options().values(), " ".join(_OF_OTHERS.values()).split())
    return [f"nothing has {found}" for found in _OPTION.findall(span) if found not in known]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    wrong = [
        f"{page}:{block.line}: {said}"
        for block in blocks_of(page)
        if block.language in _FENCED
        for said in unknown(_typed(block))
    ]
    for line, span in said_between_backquotes(page):
        found = loose(span) if span.split() else []
        wrong += [f"{page}:{line}: {said}" for said in unknown(span) + found]
    assert wrong == []


def _typed(block: Block) -> str:
    """What is typed in a block: of a console not what is printed there."""
    if block.language != "console":
        return block.text
    return "\n".join(re.findall(r"^\$ ((?:.*\\\n)*.*)$", block.text, re.MULTILINE))


def test_extras_that_pages_install_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {
        extra
        for page in PAGES
        for found in re.findall(r"quantkit-llm\[([\w,]+)\]", (ROOT / page).read_text())
        for extra in found.split(",")
    }
    assert asked
    assert asked <= extras["optional-dependencies"].keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quantkit build MODEL --quants q4_k_m", "build has no --quants"),
        ("quantkit bild MODEL", "there is no command bild"),
        ("quantkit fit MODEL [--gpu 24GB]\n         [--rum 32GB]", "fit has no --rum"),
        ("cd x && quantkit smoke FILE --proven", "smoke has no --proven"),
        ("python -m benchmarks.scale --chek", "benchmarks.scale has no --chek"),
        ("quantkit quants -q", "quants has no -q"),
    ],
)
def test_what_is_not_there_is_found(text: str, said: str) -> None:
    assert unknown(text) == [said]
    assert unknown("quantkit build MODEL -q q4_k_m --imatrix auto  # not --what") == []


def test_options_without_a_command_are_looked_up() -> None:
    assert loose("--quant q4_k_m") == []
    assert loose("build --prove") == []
    assert loose("build --proof") == ["build has no --proof"]
    assert loose("--nothing-like-it") == ["nothing has --nothing-like-it"]
