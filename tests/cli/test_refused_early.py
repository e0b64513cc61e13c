"""Whatever can be refused is refused before a text is run through the model."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.building.output import locked
from quantkit.calibration.journaled import Run
from quantkit.core.errors import ClusterError
from tests.building.builds import names_in
from tests.calibration.runs import text_file
from tests.cli.command import quantkit, refusal
from tests.random_checkpoints import random_checkpoint

SMALL = ("--chunks", "2", "--context", "64", "--no-smoke")
# Ways to need a text, and the file or folder that each leaves.
WAYS: dict[str, tuple[tuple[str, ...], str]] = {
    "imatrix": (("-q", "q4_k_m", "--imatrix", "auto"), "Tiny-Q4_K_M.gguf"),
    "gptq": (("-q", "gptq-int4"), "Tiny-gptq-int4"),
    "gptq and slabs": (("-q", "gptq-int4", "-q", "q8_0"), "Tiny-Q8_0.gguf"),
    "both": (("-q", "gptq-int4", "-q", "q4_0", "--imatrix", "auto"), "Tiny-Q4_0.gguf"),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "model", "mistral", num_hidden_layers=1)


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(*_: object) -> None:
        raise AssertionError("A model was run.")

    monkeypatch.setattr(Run, "execute", execute)


def command(model: Path, way: str, *options: object) -> tuple[object, ...]:
    text = text_file(model.parent)
    return ("build", model, "--name", "Tiny", *WAYS[way][0], "--text", text, *SMALL, *options)


def contents(folder: Path) -> dict[str, bytes] | None:
    if not folder.is_dir():
        return None
    return {name: (folder / name).read_bytes() for name in names_in(folder)}


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("there", ["a file", "a folder", "another build"])
def test_what_is_there_is_looked_at_first(
    model: Path, tmp_path: Path, way: str, there: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    name = WAYS[way][1]
    wanted = f"{out / name} already exists and was not built from"
    if there == "a file":
        (out / name).write_bytes(b"mine")
    elif there == "a folder":
        (out / name).mkdir()
        (out / name / "mine").touch()
    before = contents(out)
    if there == "another build":
        with locked(out):
            sentence = refusal(quantkit(*command(model, way, "-o", out)))
        wanted = f"Another build is writing to {out}"
    else:
        sentence = refusal(quantkit(*command(model, way, "-o", out)))
    assert sentence.startswith(wanted)
    assert contents(out) == before


@pytest.mark.parametrize("way", ["imatrix", "gptq"])
def test_a_folder_of_another_checkpoint(
    model: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The importance matrix that belongs to what is there stays as it is."""
    out = tmp_path / "out"
    assert quantkit(*command(model, way, "-o", out)).code == 0
    other = random_checkpoint(tmp_path / "other", "mistral", num_hidden_layers=1, seed=1)
    before = contents(out)
    monkeypatch.setattr(Run, "execute", None)
    sentence = refusal(quantkit(*command(other, way, "-o", out)))
    assert "already exists and was" in sentence
    assert "move it away" in sentence
    assert contents(out) == before


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--shard-size", "1kB"), "shard"),
        (("--max-memory", "1MiB"), r"--max-memory 1\.05 MB is below one slab"),
        (("--tensor-type", "nothing_like_it=q6_k"), "matches no tensor"),
        (("--kernel", "ggml", "--search", "best"), "needs --kernel fast"),
        (("--group-size", "100"), "100"),
        (("--context", "4096"), "--context 4096 is more than"),
        (("--text", "absent.txt"), "absent.txt does not exist"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_plan_that_cannot_be(
    model: Path, tmp_path: Path, way: str, options: tuple[str, ...], names: str
) -> None:
    out = tmp_path / "out"
    has_slabs, has_gptq = way != "gptq", "gptq" in way or way == "both"
    if options[0] in ("--max-memory", "--tensor-type", "--kernel") and not has_slabs:
        return
    if options[0] in ("--tensor-type", "--kernel") and way == "gptq and slabs":
        names += "|--search is for"
    if options[0] == "--group-size" and not has_gptq:
        names = "--group-size is for GPTQ"
    sentence = refusal(quantkit(*command(model, way, "-o", out, *options)))
    assert re.search(names, sentence), sentence
    assert not out.exists()


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("way", WAYS)
def test_a_disk_that_is_too_small(
    model: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage

    def usage(path: Any) -> Any:
        return real(path)._replace(free=1_300_000)  # the files that are kept beside take one

    monkeypatch.setattr(shutil, "disk_usage", usage)
    sentence = refusal(quantkit(*command(model, way, "-o", tmp_path / "out")))
    assert "has 1.3 MB free and the build needs" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["file", "/proc/quantkit"])
def test_a_folder_that_cannot_be(model: Path, tmp_path: Path, way: str, place: str) -> None:
    (tmp_path / "file").touch()
    sentence = refusal(quantkit(*command(model, way, "-o", tmp_path / place)))
    assert str(tmp_path / place) in sentence
    assert "-o" in sentence


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("way", ["imatrix", "both"])
def test_a_matrix_of_something_else_is_left(model: Path, tmp_path: Path, way: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "imatrix.gguf").write_bytes(b"of somebody else")
    sentence = refusal(quantkit(*command(model, way, "-o", out)))
    assert sentence.startswith(f"{out / 'imatrix.gguf'} already exists and was made from another")
    assert (out / "imatrix.gguf").read_bytes() == b"of somebody else"


@pytest.mark.usefixtures("nothing_runs")
def test_without_a_package(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    real = util.find_spec
    monkeypatch.setattr(
        util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else real(name, *rest)
    )
    out = tmp_path / "out"
    sentence = refusal(quantkit(*command(model, "gptq", "-q", "bnb-nf4", "-o", out)))
    assert "bitsandbytes" in sentence
    assert not out.exists()


@pytest.mark.usefixtures("nothing_runs")
def test_a_cluster_that_is_not_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def join(*_: object, **__: object) -> None:
        raise ClusterError("There is no such cluster.")

    monkeypatch.setattr("quantkit.api.build.workers_of", join)
    wish = command(model, "imatrix", "-o", tmp_path / "out", "--cluster", "auto")
    assert refusal(quantkit(*wish), 2) == "There is no such cluster."
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", ["imatrix", "gptq"])
def test_jobs_count_for_what_is_run_too(
    model: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    before = torch.get_num_threads()
    seen = set()
    real = Run.execute

    def execute(self: Run, *arguments: Any, **options: Any) -> None:
        seen.add(torch.get_num_threads())
        real(self, *arguments, **options)

    monkeypatch.setattr(Run, "execute", execute)
    assert quantkit(*command(model, way, "-o", tmp_path / "out", "--jobs", 3)).code == 0
    assert seen == {3}
    assert torch.get_num_threads() == before


def test_what_stands_for_the_matrix_gives_the_same_plan(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what is looked at before is what will be written."""
    from quantkit.api import build

    digests: list[list[str]] = []
    real = build.__dict__["_refuse_early"]

    def spy(order: Any, on_text: Any, work: Any) -> None:
        digests.append([layout.digest for layout in work.layouts])
        real(order, on_text, work)

    monkeypatch.setattr(build, "_refuse_early", spy)
    out = tmp_path / "out"
    assert quantkit(*command(model, "imatrix", "-q", "q8_0", "-o", out)).code == 0
    artifacts = json.loads((out / "quantkit.json").read_text())["artifacts"]
    assert sorted(entry["plan_sha256"] for entry in artifacts.values()) == sorted(digests[0])


def test_a_matrix_that_was_deleted_is_made_again(model: Path, tmp_path: Path) -> None:
    """Then what is there is what was asked for, and stays."""
    out = tmp_path / "out"
    wish = command(model, "imatrix", "-o", out)
    assert quantkit(*wish).code == 0
    (out / "imatrix.gguf").unlink()
    again = quantkit(*wish)
    assert again.code == 0, again
    assert "was there already" in again.err


def test_calibrate_overwrites_nothing_unasked(model: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "imatrix.gguf", text_file(tmp_path)
    wish = ("calibrate", model, "-o", out, "--text", text, "--chunks", "2", "--context", "64")
    out.write_bytes(b"mine")
    assert f"{out} already exists; --overwrite replaces it" in refusal(quantkit(*wish))
    assert "is not an importance matrix" in refusal(quantkit(*wish, "--overwrite"))
    assert out.read_bytes() == b"mine"
    out.unlink()
    assert quantkit(*wish).code == 0
    made = out.stat().st_mtime_ns
    assert quantkit(*wish, "--overwrite").code == 0
    assert out.stat().st_mtime_ns != made


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("picture", "names"),
    [("routing.xyz", "its ending must say"), ("absent/r.png", "does not exist")],
)
def test_a_picture_that_cannot_be_drawn(
    tmp_path: Path, picture: str, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = random_checkpoint(tmp_path / "model", "mixtral", num_hidden_layers=1)
    wish = ("calibrate", model, "--text", text_file(tmp_path), "--chunks", "2", "--context", "64")
    assert names in refusal(quantkit(*wish, "--plot", picture))


MEASURING: dict[str, tuple[object, ...]] = {
    "compare --html": ("compare", "out", "--html", "page.html"),
    "compare --plot": ("compare", "out", "--plot", "plots"),
    "compare --layers": ("compare", "out", "--layers", "out/a.gguf"),
    "calibrate --plot": ("calibrate", "model", "--plot", "routing.png"),
    "fit --plot": ("fit", "mixtral-8x7b", "--plot", "memory.png"),
}


@pytest.mark.parametrize("case", MEASURING)
def test_without_matplotlib_nothing_is_measured(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders are not even looked at."""
    from importlib import util

    real: Callable[..., Any] = util.find_spec
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        util, "find_spec", lambda name, *rest: None if name == "matplotlib" else real(name, *rest)
    )
    sentence = refusal(quantkit(*MEASURING[case]))
    assert "matplotlib, which is not installed" in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--shard-size", "12XB"), "'12XB' is not a size"),
        (("--shard-size", "1kB"), "shard"),
        (("--max-memory", "12XB"), "'12XB' is not a size"),
        (("--max-memory", "1MiB"), "is below one slab"),
    ],
)
def test_a_merge_that_could_not_be_written(
    tmp_path: Path, options: tuple[str, ...], names: str
) -> None:
    model = random_checkpoint(tmp_path / "model", "mixtral", num_hidden_layers=1)
    wish = ("densify", model, "-o", tmp_path / "out", "--merge", "routed", "--chunks", "2")
    sentence = refusal(quantkit(*wish, "--text", text_file(tmp_path), "--context", "64", *options))
    assert names in sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "training.txt"]


@pytest.mark.parametrize(
    ("others", "names"),
    [
        (("absent",), "absent"),
        (("absent.gguf",), "absent.gguf"),
        (("dense", "--experts"), "expert"),
    ],
)
def test_all_models_are_looked_at_before_the_first_is_measured(
    tmp_path: Path, others: tuple[str, ...], names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.calibration.lockstep import perplexity

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(perplexity, "token_losses", None)
    random_checkpoint(tmp_path / "model", "mixtral", num_hidden_layers=1)
    random_checkpoint(tmp_path / "dense", "mistral", num_hidden_layers=1)
    wish = ("perplexity", "model", *others, "--text", text_file(tmp_path), "--context", "64")
    assert names in refusal(quantkit(*wish))


@pytest.mark.parametrize("place", ["/dev/null", "/dev/null/x", "/proc/x", "/proc/x/y"])
@pytest.mark.parametrize(
    "words",
    [
        ("build", "absent", "-q", "q8_0"),
        ("export", "absent"),
        ("densify", "absent", "--expert", "0"),
        ("calibrate", "absent", "--overwrite"),
    ],
    ids=lambda words: words[0],
)
def test_a_place_that_cannot_be_is_refused_before_the_model_is_looked_at(
    words: tuple[str, ...], place: str
) -> None:
    sentence = refusal(quantkit(*words, "-o", place))
    assert "absent" not in sentence
    assert sentence.startswith((place, "/dev/null", "/proc"))
    assert "-o" in sentence


def test_looking_at_a_place_leaves_nothing(tmp_path: Path) -> None:
    sentence = refusal(quantkit("build", "absent", "-q", "q8_0", "-o", tmp_path / "a" / "b"))
    assert "absent" in sentence
    assert not names_in(tmp_path)
