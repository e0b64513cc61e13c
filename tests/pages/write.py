"""Run the commands of pages and write what they print into them: ``python -m tests.pages.write``.

What a page shortens by a line ``...`` stays as it is while it is right.
"""

import sys
import tempfile
from pathlib import Path

from tests.pages.blocks import PAGES, ROOT, blocks_of, commands_of, text_of
from tests.pages.running import as_said, place, run_all


def written(page: str, printed: dict[int, str]) -> str:
    """A page with what the commands on its lines print."""
    lines = text_of(page).splitlines()
    for block in reversed(list(blocks_of(page))):
        if block.language == "console":
            last = block.line + block.text.count("\n")
            commands = [c for c in commands_of(page) if block.line <= c.line < last]
            new: list[str] = []
            for command in commands:
                shown = printed.get(command.line, command.output)
                if command.output and shown and as_said(command, shown):
                    shown = command.output
                head, *more = command.text.splitlines()
                new += ["", f"$ {head}", *more, *(s.rstrip() for s in (shown or "").splitlines())]
            lines[block.line - 1 : last - 1] = new[1:]
    return "\n".join(lines) + "\n"


def main(pages: list[str]) -> None:
    """Write pages anew, or all: of each, the sections that show what is printed are run."""
    for page in pages or PAGES:
        shown = {block.section for block in blocks_of(page) if block.language == "console"}
        commands = [command for command in commands_of(page) if command.section in shown]
        if not commands:
            continue
        with tempfile.TemporaryDirectory() as folder, place(Path(folder)) as where:
            printed = {}
            for command, code, text in run_all(commands, where):
                print(f"{command.page}:{command.line}: exit {code}", flush=True)  # noqa: T201
                printed[command.line] = text
        text_of.cache_clear()  # it may have been edited meanwhile
        (ROOT / page).write_text(written(page, printed), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
