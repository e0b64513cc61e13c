"""The commands that pages show do what the pages say, run on tiny checkpoints as they are typed."""

import re
from pathlib import Path

import pytest

from tests.pages.blocks import PAGES, Command, commands_of
from tests.pages.places import NOT_RUN, PLAIN
from tests.pages.running import as_said, differences, matches, place, why_not

_SHOWN = {page: commands_of(page) for page in PAGES}
_RUN = [page for page, shown in _SHOWN.items() if any(why_not(c) is None for c in shown)]


@pytest.mark.parametrize(("page", "section"), PLAIN)
def test_a_section(page: str, section: str, tmp_path: Path) -> None:
    commands = [command for command in _SHOWN[page] if command.section == section]
    assert commands
    with place(tmp_path) as where:
        found = differences(commands, where)
    assert not found, "\n\n".join(found)


@pytest.mark.native
@pytest.mark.parametrize("page", _RUN)
def test_a_page(page: str, tmp_path: Path) -> None:
    with place(tmp_path) as where:
        found = differences(_SHOWN[page], where)
    assert not found, "\n\n".join(found)


def test_every_reason_not_to_run_something_is_needed() -> None:
    shown = [command.text for commands in _SHOWN.values() for command in commands]
    assert {what for what in NOT_RUN if not any(re.search(what, text) for text in shown)} == set()


def test_what_a_page_says_wrongly_is_found(tmp_path: Path) -> None:
    def shown(text: str, output: str | None = None) -> Command:
        return Command("a page", 1, "", text, output)

    with place(tmp_path) as where:
        assert differences([shown("quantkit --version", "quantkit 0...")], where) == []
        [option] = differences([shown("quantkit quants --nothing")], where)
        assert "ends with 2" in option
        [output] = differences([shown("quantkit --version", "quantkit 9.9.9")], where)
        assert "and not:\nquantkit 9.9.9" in output


def test_what_varies_is_not_compared() -> None:
    assert matches("│ 5.07 │ 915 │ passed │", "│ 5.07 │   87 │ passed │")
    assert not matches("│ 5.07 │ 915 │ passed │", "│ 5.08 │ 915 │ passed │")
    assert not matches("│ 5.07 │ 915 │ passed │", "│ 5.07 │ 915 │ failed │")
    assert matches("one\n...\nthree", "one\ntwo\nthree")
    measured = Command("docs/compare.md", 1, "", "quantkit compare", "q4_k_m: 0.0123 ± 1.2e-05")
    assert as_said(measured, "q4_k_m: 0.0124 ± 1.3e-05")
    assert not as_said(measured, "q4_k_m: failed")
