"""Links between pages lead somewhere, headings included."""

import re
from pathlib import Path

import pytest

from tests.pages.blocks import PAGES, ROOT

_LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    words = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", word.lower()).replace(" ", "-") for word in words}


def broken(page: str, text: str) -> list[str]:
    found = []
    for link in _LINK.finditer(text):
        target = link[1] or link[2]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert broken(page, (ROOT / page).read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found() -> None:
    assert broken("docs/fit.md", "[a](nowhere.md) [b](bnb.md#nothing) [c](bnb.md#loading)") == [
        "nowhere.md",
        "bnb.md#nothing",
    ]
