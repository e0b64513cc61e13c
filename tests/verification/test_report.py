"""The page of a comparison: what files are called, and what is said of them, stays text."""

from pathlib import Path

from quantkit.verification.compare import Comparison, Result
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
