"""``quantkit calibrate`` and ``quantkit build --imatrix auto`` with a GGUF."""

import json
from pathlib import Path

import pytest

from quantkit.checkpoint.imatrix import load_imatrix
from tests.calibrate.runs import TINY, text_file
from tests.cli.command import quantkit, refusal
from tests.gguf_sources import unquantized

SMALL = ("--chunks", 2, "--context", 64)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unquantized(TINY / "tiny-mixtral", tmp_path_factory.mktemp("source"), name="Tiny")


def test_the_table_and_the_picture(source: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "i.gguf", tmp_path / "routing.png"
    done = quantkit("calibrate", source, "-o", out, *SMALL, "--plot", picture)
    assert done.code == 0, done
    assert "Tokens per expert" in done.out
    assert "2 chunks of 64 tokens, perplexity" in done.out
    assert "built-in text" in done.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert load_imatrix(out).chunk_count == 2


def test_json(source: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "i.gguf", text_file(tmp_path)
    done = quantkit("calibrate", source, "-o", out, "-t", text, *SMALL, "--json")
    document = json.loads(done.out)
    assert (document["file"], document["text"]) == (str(out), [str(text)])
    assert document["resumed_chunks"] == 0
    assert [row["layer"] for row in document["routing"]] == [0, 1, 2, 3]
    for row in document["routing"]:
        assert sum(row["tokens"]) == 2 * 2 * 64


def test_made_on_the_way(source: Path, tmp_path: Path) -> None:
    """Once; and a dry run plans the same bytes without it."""
    out, text = tmp_path / "out", text_file(tmp_path)
    wish = (
        "build", source, "-q", "q4_k_s", "-o", out, "--no-smoke", "--kernel", "ggml", "--json",
        "--imatrix", "auto", "-t", text, *SMALL,
    )  # fmt: skip
    planned = json.loads(quantkit(*wish, "--dry-run").out)
    assert not out.exists()
    assert quantkit(*wish).code == 0
    (size,) = [one["bytes"] for one in planned["artifacts"]]
    assert size == (out / "Tiny-Q4_K_S.gguf").stat().st_size
    manifest = json.loads((out / "quantkit.json").read_text())
    (entry,) = manifest["artifacts"].values()
    assert entry["imatrix"]["file"] == "imatrix.gguf"
    made = (out / "imatrix.gguf").stat().st_mtime_ns
    assert quantkit(*wish).code == 0
    assert (out / "imatrix.gguf").stat().st_mtime_ns == made
    text.write_text(text.read_text()[1000:])
    assert "made from another model, text or settings" in refusal(quantkit(*wish))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--device", "cpu"), "--device is for checkpoints"),
        (("--min-tokens", 8), "--min-tokens is for checkpoints"),
        (("--max-memory", "1GB"), "--max-memory is for checkpoints"),
        (("--random-tokens",), "--random-tokens is for checkpoints"),
        (("--gpu-layers", 2), "has no GPU backend"),
        (("--text", "absent.txt"), "absent.txt does not exist"),
    ],
)
def test_refused(source: Path, arguments: tuple[object, ...], says: str, tmp_path: Path) -> None:
    done = quantkit("calibrate", source, "-o", tmp_path / "i.gguf", *SMALL, *arguments)
    assert says in refusal(done)
    assert not list(tmp_path.iterdir())


def test_one_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "hf download someone/Tiny-GGUF Tiny.gguf" in refusal(
        quantkit("calibrate", "someone/Tiny-GGUF/Tiny.gguf")
    )
    assert "does not exist" in refusal(quantkit("calibrate", "Tiny.gguf"))
