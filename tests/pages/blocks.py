"""What the pages show: their fenced blocks, the commands in them, and words between backquotes.

``console`` blocks have commands after ``$ `` and what they print, ``sh`` blocks commands alone. A
``text`` block is not run. Where no language is named, a block with ``$ `` is ``console``, one that
begins with a program's name is ``sh``, unless it is a synopsis, with options in brackets.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")),
    "benchmarks/README.md",
)
_FENCE = re.compile(r"^( *)(`{3,})(\w*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_PROGRAMS = ("quantkit", "python", ".venv/bin/python", "make", "pip", "ray", "openssl", "hf")
_SYNOPSIS = re.compile(r"\[[^\]]*--|\[--|\.\.\.|\w\|\w")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: which page, which line its first is (from 1), beneath which heading."""

    page: str
    line: int
    section: str
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """One command as it is typed, and what the page says that it prints; None if nothing."""

    page: str
    line: int
    section: str
    text: str
    output: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str, text: str | None = None) -> Iterator[Block]:
    """The fenced blocks of a page, or of a text in its place, with their languages found out."""
    text = text_of(page) if text is None else text
    fences = list(_FENCE.finditer(text))
    headings = [
        found
        for found in _HEADING.finditer(text)
        if not any(fence.start() < found.start() < fence.end() for fence in fences)
    ]
    for fence in fences:
        above = [found[1] for found in headings if found.start() < fence.start()]
        body = fence[4]
        line = text.count("\n", 0, fence.start(4)) + 1
        yield Block(page, line, above[-1] if above else "", fence[3] or _language(body), body)


def _language(body: str) -> str:
    lines = body.splitlines()
    if any(line.startswith("$ ") for line in lines):
        return "console"
    starts = lines[0].split()[:1] if lines else []
    if starts and starts[0] in _PROGRAMS and not _SYNOPSIS.search(body):
        return "sh"
    return "text"


def commands_of(page: str, text: str | None = None) -> list[Command]:
    """Everything that a page shows to be typed, in its order."""
    found: list[Command] = []
    for block in blocks_of(page, text):
        if block.language in ("console", "sh"):
            found += _commands(block)
    return found


def _commands(block: Block) -> Iterator[Command]:
    """Each command with its continued lines, and in a console the lines beneath it."""
    is_console = block.language == "console"
    lines = block.text.splitlines()
    number = 0
    while number < len(lines):
        start, line = number, lines[number]
        number += 1
        if (is_console and not line.startswith("$ ")) or not line.strip() or line[0] == "#":
            continue
        typed = [line.removeprefix("$ ") if is_console else line]
        while typed[-1].endswith("\\") and number < len(lines):
            typed.append(lines[number])
            number += 1
        output = []
        while is_console and number < len(lines) and not lines[number].startswith("$ "):
            output.append(lines[number])
            number += 1
        printed = "\n".join(output).strip("\n")
        place = (block.page, block.line + start, block.section)
        yield Command(*place, "\n".join(typed), printed or None)


def said_between_backquotes(page: str) -> Iterator[tuple[int, str]]:
    """Words set as code in running text, with the line they are in."""
    text = _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text_of(page))
    for number, line in enumerate(text.splitlines(), 1):
        for span in _SPAN.finditer(line):
            yield number, span[1]
