"""Sizes as people write them."""

import pytest

from quantkit.core.units import SizeError, counted, format_count, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("4000000", 4_000_000),
        ("1GiB", 2**30),
        ("45GB", 45 * 10**9),
        ("45g", 45 * 10**9),
        ("1.5 MiB", 3 * 2**19),
        (" 500mb ", 500 * 10**6),
    ],
)
def test_parse_size(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text",
    ["", "24XB", "-1GB", "0", "1e9", "GB", "1 000", "45", "4096", "9" * 400 + "GB", "9999999TB"],
)
def test_nonsense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SizeError, match=r"size|unit|disk"):
        parse_size(text)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (85_600_000_000, "85.6 GB"),
        (281_241_493_344, "281 GB"),
    ],
)
def test_format_size(n_bytes: int, text: str) -> None:
    assert format_size(n_bytes) == text


def test_format_count() -> None:
    assert [format_count(n) for n in (12, 6_291_456, 22_237_845_504)] == ["12", "6.29M", "22.2B"]


def test_one_thing_and_several() -> None:
    assert (counted(1, "quant"), counted(1200, "layer")) == ("1 quant", "1,200 layers")
