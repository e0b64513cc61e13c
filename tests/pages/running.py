"""Commands of a page, run as they are typed, in a folder of their own beside a Hub of their own."""

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.checkpoints.text import training_text
from tests.hub_both import serve_both
from tests.hub_server import HubServer
from tests.hub_writes import WRITER, HubStore
from tests.pages.blocks import ROOT, Command
from tests.pages.places import (
    FIRST,
    MEASURED,
    MIXTRAL,
    NOT_RUN,
    OF_A_PAGE,
    ON_THE_HUB,
    VARIES,
    WORDS,
)

_HUB = "https://huggingface.co"
_ANY_FIGURE = (r"\d[\d,.]*(e[+-]\d+)?", "N")
_ELLIPSIS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, slots=True)
class Place:
    """A folder where `tests/checkpoints` is, texts, and a server that stands for the Hub."""

    folder: Path
    endpoint: str

    def run(self, typed: str) -> tuple[int, str]:
        """Run what is typed in a shell; its exit code, and all that it printed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", typed],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.strip("\n").replace(self.endpoint, _HUB)

    def _environment(self) -> dict[str, str]:
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        hub = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": WRITER, "HF_HUB_DISABLE_XET": "1"}
        hub["HF_HOME"] = str(self.folder / ".hub")
        python = {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
        return {**os.environ, **hub, **python, "PATH": programs}


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    """Make a place in an empty folder, and end its server with the block."""
    (folder / "tests").symlink_to(ROOT / "tests")
    for name in ("training.txt", "OTHER.txt"):
        (folder / name).write_text(training_text(), encoding="utf-8")
    hub, store = HubServer(ROOT / MIXTRAL, ON_THE_HUB), HubStore()
    with serve_both(hub, store):
        yield Place(folder, hub.url)


def why_not(command: Command) -> str | None:
    """Why a command is not run; None if it is."""
    return next((why for what, why in NOT_RUN.items() if re.search(what, command.text)), None)


def typed(command: Command) -> str:
    """A command with what stands for its placeholders."""
    text = command.text
    for words in (OF_A_PAGE.get(command.page, {}), WORDS):
        for word, instead in words.items():
            there = rf"(?<![\w/.-]){re.escape(word)}(?![\w/-])"
            text = re.sub(there, instead.replace("\\", r"\\"), text)
    return text


def run_all(commands: list[Command], where: Place) -> Iterator[tuple[Command, int, str]]:
    """Run a page's commands in turn, and before them what it takes to have been run."""
    for text in FIRST.get(commands[0].page, ()) if commands else ():
        code, printed = where.run(text)
        assert code == 0, f"{text}\n{printed}"
    for command in commands:
        if why_not(command) is None:
            yield command, *where.run(typed(command))


def differences(commands: list[Command], where: Place) -> list[str]:
    """What commands do that their page does not say."""
    found = []
    for command, code, printed in run_all(commands, where):
        # A page may show how something fails.
        expected = 2 if (command.output or "").startswith("Error: ") else 0
        if code != expected:
            found.append(f"{command}\nends with {code}:\n{printed}")
        elif command.output is not None and not as_said(command, printed):
            found.append(f"{command}\nprints:\n{printed}\nand not:\n{command.output}")
    return found


def as_said(command: Command, printed: str) -> bool:
    """Whether a command prints what its page says."""
    varies = (*VARIES, _ANY_FIGURE) if command.page in MEASURED else VARIES
    return matches(command.output or "", printed, varies)


def matches(said: str, printed: str, varies: Iterable[tuple[str, str]] = VARIES) -> bool:
    """Whether something is printed as a page says, apart from what varies and what `...` is for."""
    for pattern, instead in varies:
        said, printed = (re.sub(pattern, instead, text) for text in (said, printed))
    return doctest.OutputChecker().check_output(said + "\n", printed + "\n", _ELLIPSIS)
