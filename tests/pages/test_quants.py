"""The table of quants is what quantkit plans."""

from tests.pages.quants import PAGE, page


def test_the_page_is_as_generated() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.pages.quants writes it"
