import base64
import json
import os
import re
import shutil
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest

from quantkit.verification.compare import compare
from tests.building.builds import build
from tests.cli.command import quantkit, refusal
from tests.random_checkpoints import random_checkpoint
from tests.verification.faults import scale_norm, with_fault

TINY = Path(__file__).parents[1] / "checkpoints" / "tiny-mixtral"
FEW = ("--chunks", 2, "--context", 128, "--jobs", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "artifacts"
    build(TINY, out, "f16", "q8_0", "q4_k_m")
    return out


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def of(folder: Path, quant: str) -> Path:
    [file] = folder.glob(f"*-{quant.upper()}.gguf")
    return file


def test_too_few_windows_are_said_and_no_failure(folder: Path) -> None:
    outcome = quantkit("compare", folder, *FEW)
    assert outcome.code in (0, None)
    assert outcome.out.count("not judged") == 2
    assert outcome.err.count("Too few windows to judge") == 2


def test_the_figures_are_kept_beside_the_artifacts(folder: Path) -> None:
    """Where quantkit publish looks for them; what lay there before is replaced, not written to."""
    elsewhere = folder.with_name("elsewhere")
    elsewhere.write_text("mine")
    (folder / "compare.json").unlink(missing_ok=True)
    (folder / "compare.json").symlink_to(elsewhere)
    printed = json.loads(quantkit("compare", folder, *FEW, "--json").out)
    kept = json.loads((folder / "compare.json").read_text())
    assert not (folder / "compare.json").is_symlink()
    assert elsewhere.read_text() == "mine"
    assert kept == printed
    assert {path.suffix for path in folder.iterdir()} == {".gguf", ".json"}


def test_figures_over_more_windows_stay(folder: Path) -> None:
    kept = folder / "compare.json"
    kept.unlink(missing_ok=True)
    fewer = ("--chunks", 1, *FEW[2:])
    quantkit("compare", folder, *FEW)
    before = kept.read_bytes()
    outcome = quantkit("compare", folder, *fewer)
    assert f"{kept} stays as it is: it is over 2 windows of the same text" in outcome.err
    assert "this one over 1." in outcome.err
    assert kept.read_bytes() == before

    # An artifact that is newer than the figures makes them worthless.
    os.utime(of(folder, "q8_0"), (kept.stat().st_mtime + 1,) * 2)
    outcome = quantkit("compare", folder, *fewer)
    assert "stays" not in outcome.err
    assert json.loads(kept.read_text())["windows"] == 1


def test_a_reference_is_looked_for_before_anything_is_exported(tmp_path: Path) -> None:
    build(random_checkpoint(tmp_path / "model", "mistral"), tmp_path / "out", "bnb-nf4")
    outcome = quantkit("compare", tmp_path / "out", *FEW)
    assert outcome.code == 2
    [line] = outcome.err.splitlines()  # no word of an export
    assert line.startswith("Error: There is no unquantized (f32, bf16 or f16) artifact")


def test_json_tells_everything_and_a_broken_norm_fails_alone(folder: Path, tmp_path: Path) -> None:
    bad = with_fault(of(folder, "q8_0"), tmp_path / "bad.gguf", scale_norm)
    outcome = quantkit("compare", of(folder, "f16"), bad, *FEW, "--json")
    assert outcome.code == 1
    assert "1 of 2 artifacts failed: bad.gguf: The weights" in outcome.err
    found = json.loads(outcome.out)
    assert found["reference_quant"] == "f16"
    assert found["windows"] == 2
    reference, broken = found["artifacts"]
    assert reference["is_reference"]
    assert reference["verdict"]["ok"]
    assert not broken["verdict"]["ok"]
    assert broken["run"] == "as it is"
    assert broken["measures"]["n_tokens"] == 2 * 63
    assert len(broken["measures"]["kld_percentiles"]) == len(found["kld_percentiles"])
    assert broken["speed"]["prompt_tokens_per_second"] > 0


class Page(HTMLParser):
    """What a page holds: its tags, the addresses in them, and the rows of its tables."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_holds_everything_itself(folder: Path, tmp_path: Path) -> None:
    page, plots = tmp_path / "report.html", tmp_path / "plots"
    layers = of(folder, "q4_k_m")
    outcome = quantkit("compare", folder, *FEW, "--html", page, "--plot", plots, "--layers", layers)
    assert "q4_k_m" in outcome.out
    assert {file.name for file in plots.iterdir()} == {
        f"{name}.{kind}"
        for name in ("frontier", "percentiles", "layers")
        for kind in ("svg", "png")
    }
    parsed = Page(page)
    assert len(parsed.addresses) == 3
    for address in parsed.addresses:
        kind, _, data = address.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(data)
    assert parsed.tags.count("table") == 4
    # Three tables of three artifacts; all tensors, and the experts of 4 layers one by one.
    assert parsed.tags.count("tr") == 3 * (1 + 3) + 1 + 4 * (7 + 3 * 8) + 3
    text = page.read_text(encoding="utf-8")
    assert "<h1>How close to " in text
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    assert not re.search(r"https?://", text.replace("http://www.w3.org", ""))
    assert not [file for file in tmp_path.iterdir() if "partial" in file.name]


def test_the_page_begins_with_what_failed_and_why(folder: Path, tmp_path: Path) -> None:
    bad = with_fault(of(folder, "q8_0"), tmp_path / "bad.gguf", scale_norm)
    page = tmp_path / "report.html"
    assert quantkit("compare", of(folder, "f16"), bad, *FEW, "--html", page).code == 1
    text = page.read_text(encoding="utf-8")
    before, _, _ = text.partition("<table")
    assert "<p>1 failed.</p>" in before
    assert re.search(r"<li><b>q8_0</b>: The weights .* are 10% off", before)


def test_an_absent_reference_is_built_from_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(of(folder, "q8_0"), alone)
    sentence = refusal(quantkit("compare", alone))
    assert "--checkpoint" in sentence
    outcome = quantkit("compare", alone, "--checkpoint", TINY, *FEW, "--json")
    assert json.loads(outcome.out)["reference_quant"] == "bf16"
    [kept] = (alone / ".quantkit-reference").glob("*.gguf")
    assert quantkit("compare", alone, *FEW, "--json").out
    assert kept.is_file()


def test_a_quantized_reference_is_allowed_and_said(folder: Path) -> None:
    outcome = quantkit("compare", folder, "--reference", "q8_0", *FEW, "--json")
    assert "is quantized itself" in outcome.err
    assert json.loads(outcome.out)["reference_is_quantized"]


def test_smoke_measures_against_a_reference(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(compare, context=128, windows=24)
    monkeypatch.setattr("quantkit.verification.compare.compare", few)
    bad = with_fault(of(folder, "q8_0"), tmp_path / "bad.gguf", scale_norm)
    outcome = quantkit("smoke", bad, "--reference", of(folder, "f16"), "--jobs", 1)
    assert outcome.code == 1
    assert "passed" in outcome.out
    assert "blk.1.ffn_norm.weight are 10% off" in outcome.err
    outcome = quantkit(
        "smoke", of(folder, "q8_0"), "--reference", of(folder, "f16"), "--jobs", 1, "--json"
    )
    assert outcome.code in (0, None)
    assert json.loads(outcome.out)["compare"]["verdict"]["reason"] == "healthy"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "Give what to compare"),
        (("/nowhere",), "does not exist"),
        (("{empty}",), "holds no artifact"),
        (("{folder}", "--reference", "/nowhere.gguf"), "does not exist"),
        (("{folder}", "--reference", "q9"), "no quant 'q9'"),
        (("{folder}", "--text", "/nowhere.txt"), "does not exist"),
        (("{folder}", "--html", "/nowhere/page.html"), "does not exist"),
        (("{folder}", "--layers", "/nowhere.gguf"), "does not exist"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    outcome = quantkit("compare", *(a.format(folder=folder, empty=empty) for a in arguments), *FEW)
    assert outcome.code == 2
    assert reason in outcome.err.splitlines()[-1]
