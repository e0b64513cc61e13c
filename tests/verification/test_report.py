"""The page of a comparison: what files are called, and what is said of them, stays text."""

from pathlib import Path
from typing import Any

from quantkit.verification.compare import Comparison, Result
from quantkit.verification.divergence import PERCENTILES, Measures
from quantkit.verification.pictures import draw_all
from quantkit.verification.quality import Verdict
from quantkit.verification.report import write_page
from quantkit.verification.subjects import Subject

HOSTILE = "<script>alert(1)</script>\"'&"


def subject(name: str) -> Subject:
    return Subject(f"{name}.gguf", Path(f"{name}.gguf"), name, 1000, 1000)


def test_names_and_reasons_stay_text(tmp_path: Path) -> None:
    reference, bad = subject("bf16"), subject(HOSTILE.replace("/", ":"))
    verdict = Verdict(ok=False, reason=f"It is {HOSTILE}.", limits=None)
    results = (Result(bad, None, None, verdict),)
    comparison = Comparison(reference, HOSTILE, "0" * 64, 512, 28, 2, results)
    write_page(comparison, None, "", (), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<p>1 failed.</p>" in text
    assert "It is &lt;script&gt;" in text
    assert "alert" in text
    assert text.count("<script>") == 1  # the page's own


def test_pictures_show_names_and_no_formulas(tmp_path: Path) -> None:
    """Two of one quant are called by their names, which matplotlib would take for mathematics."""
    shares = (0.01,) * len(PERCENTILES)
    numbers: tuple[Any, ...] = (1, *[1.0] * 6, 0.01, 0.001, shares, 0.1, *[1.0] * 5)
    figures = Measures(*numbers)
    results = tuple(
        Result(
            Subject(name, Path(name), "q8_0", 1000 + number, 1000),
            figures,
            None,
            Verdict(ok=True, reason="healthy", limits=None),
        )
        for number, name in enumerate(
            ["m$\\frac{1$x.gguf", "n$x$.gguf", "e\x1b[31m.gguf", "\udcff"]
        )
    )
    comparison = Comparison(subject("bf16"), "text", "0" * 64, 512, 28, 2, results)
    drawn = draw_all(comparison, None, "", tmp_path)
    assert {path.name for path in drawn} >= {"frontier.svg", "percentiles.svg"}
    assert all(b"\x1b" not in path.read_bytes() for path in drawn if path.suffix == ".svg")
