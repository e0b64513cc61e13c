"""``quantkit calibrate`` and ``quantkit build --imatrix auto`` with a GGUF."""

import json
from pathlib import Path

import pytest

from quantkit.checkpoint.imatrix import load_imatrix
from tests.building.builds import names_in
from tests.calibration.runs import TINY, text_file
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
        (("--plot", "routing.txt"), "its ending must say which picture it is"),
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


def test_it_continues_and_adds_up(source: Path, tmp_path: Path) -> None:
    """Two halves of a text, one after the other or added up by the build, are the same matrix."""
    text = text_file(tmp_path).read_text()
    halves = [tmp_path / "first.txt", tmp_path / "second.txt"]
    halves[0].write_text(text[:5000])
    halves[1].write_text(text[5000:10000])
    first, second, both = (tmp_path / f"{name}.gguf" for name in ("first", "second", "both"))
    for half, out in zip(halves, (first, second), strict=True):
        assert quantkit("calibrate", source, "-o", out, "-t", half, *SMALL).code == 0
    done = quantkit(
        "calibrate", source, "-o", both, "-t", halves[1], *SMALL, "--continue", first, "--json"
    )
    document = json.loads(done.out)
    assert (document["chunks"], document["chunks_in_all"]) == (2, 4)

    out = tmp_path / "out"
    wish = ("build", source, "-q", "q4_k_s", "-o", out, "--no-smoke", "--kernel", "ggml", "--json")
    several = (*wish, "--imatrix", first, "--imatrix", second)
    planned = json.loads(quantkit(*several, "--dry-run").out)
    assert not out.exists()
    assert quantkit(*several).code == 0
    assert (out / "imatrix.gguf").read_bytes() == both.read_bytes()
    assert planned["artifacts"][0]["bytes"] == (out / "Tiny-Q4_K_S.gguf").stat().st_size
    assert quantkit(*several).code == 0
    other = refusal(quantkit(*wish, "--imatrix", first, "--imatrix", first))
    assert names_in(out) == {"Tiny-Q4_K_S.gguf", "imatrix.gguf", "quantkit.json"}
    assert "made from another model, text or settings" in other
    assert "quantkit calibrate --continue" in refusal(
        quantkit(*wish, "--imatrix", "auto", "--imatrix", first)
    )


def test_one_of_another_model_is_not_continued(source: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other.gguf", tmp_path / "i.gguf"
    assert quantkit("calibrate", TINY / "tiny-mistral", "-o", other, *SMALL).code == 0
    wish = ("-o", out, *SMALL, "--continue", other)
    assert "made for another model" in refusal(quantkit("calibrate", source, *wish))
    assert not out.exists()
    ours = quantkit("calibrate", TINY / "tiny-mistral", *wish, "--json")
    assert json.loads(ours.out)["chunks_in_all"] == 4


def test_a_picture_of_a_dense_model_is_refused(tmp_path: Path) -> None:
    gguf = unquantized(TINY / "tiny-mistral", tmp_path / "source")
    wish = ("-o", tmp_path / "i.gguf", "--plot", tmp_path / "routing.png")
    assert "this model has no experts" in refusal(quantkit("calibrate", gguf, *wish))


@pytest.mark.parametrize("command", ["smoke", "compare"])
def test_layers_on_a_gpu_that_is_not_there(source: Path, command: str) -> None:
    """This build of llama.cpp has no backend for one, and says so."""
    done = quantkit(command, source, "--gpu-layers", 2)
    assert done.code != 0
    assert "has no GPU backend; leave out --gpu-layers" in " ".join(done.err.split())


def test_nothing_is_added_up_for_what_is_built_otherwise(source: Path, tmp_path: Path) -> None:
    first, second = (tmp_path / f"{name}.gguf" for name in ("first", "second"))
    for seed, out in enumerate((first, second)):
        text = tmp_path / f"{seed}.txt"
        text.write_text(text_file(tmp_path).read_text()[seed * 3000 : seed * 3000 + 3000])
        assert quantkit("calibrate", source, "-o", out, "-t", text, *SMALL).code == 0
    out = tmp_path / "out"
    wish = ("build", source, "-q", "q4_k_s", "-o", out, "--no-smoke", "--kernel", "ggml")
    assert quantkit(*wish, "--imatrix", first).code == 0
    before = names_in(out)
    said = refusal(quantkit(*wish, "--imatrix", first, "--imatrix", second))
    assert "was not built from this checkpoint with these settings" in said
    assert names_in(out) == before


def test_the_one_of_several_that_is_of_another_model_is_named(source: Path, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.gguf", tmp_path / "wrong.gguf"
    assert quantkit("calibrate", source, "-o", right, *SMALL).code == 0
    assert quantkit("calibrate", TINY / "tiny-mistral", "-o", wrong, *SMALL).code == 0
    wish = ("build", source, "-q", "q4_k_s", "--imatrix", right, "--imatrix", wrong, "--dry-run")
    assert refusal(quantkit(*wish)).startswith(f"{wrong} was made for another model")


def test_only_a_matrix_is_replaced(source: Path, tmp_path: Path) -> None:
    """Not the model itself, not a text, and not by a picture of the same name."""
    model, text = tmp_path / "model.gguf", text_file(tmp_path)
    model.write_bytes(source.read_bytes())
    for out in (model, text):
        before = out.read_bytes()
        wish = ("calibrate", model, "-t", text, "-o", out, *SMALL, "--overwrite")
        assert "is not an importance matrix, and --overwrite replaces nothing else" in refusal(
            quantkit(*wish)
        )
        assert out.read_bytes() == before
    both = tmp_path / "both.png"
    drawn = quantkit("calibrate", model, "-o", both, *SMALL, "--plot", both)
    assert "cannot be the matrix and --plot's picture" in refusal(drawn)
    assert not both.exists()


def test_a_single_chunk(source: Path, tmp_path: Path) -> None:
    wish = ("calibrate", source, "-o", tmp_path / "i.gguf", "--chunks", 1, "--context", 16)
    assert quantkit(*wish).code == 0
