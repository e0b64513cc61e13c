"""What a build says last: how to run, compare and publish it."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from quantkit.cli.next_steps import show_next_steps
from quantkit.cli.output import be_quiet
from tests.cli.command import quantkit
from tests.random_checkpoints import random_checkpoint


def steps(text: str) -> dict[str, list[str]]:
    """What is typed next, by what it is for."""
    lines = text.partition("\nNext:\n")[2].splitlines()
    return {name: words for name, *words in map(shlex.split, lines)}


def test_a_build_says_what_comes_next(tmp_path: Path) -> None:
    model = random_checkpoint(tmp_path / "a model", "mixtral", num_hidden_layers=1)
    out = tmp_path / "an output"
    built = quantkit("build", model, "-q", "q8_0", "-q", "q4_0", "-o", out, "--no-smoke")
    assert " parameters, 2 quants, " in built.err
    found = steps(built.out)
    program, option, file = found["run"]
    assert (program, option) == ("llama-cli", "-m")
    assert "Q4_0" in file
    assert Path(file).is_file()
    assert found["compare"] == ["quantkit", "compare", str(out), "--checkpoint", str(model)]
    assert "publish" not in found  # which takes no file that never ran
    again = quantkit("build", model, "-q", "q8_0", "-o", out, "--no-smoke", "--json")
    assert json.loads(again.out)


def artifact(name: str, kind: str, folder: Path, bits: float, **entry: Any) -> Any:
    """As much of one as steps look at."""
    (folder / name).touch()
    quant = SimpleNamespace(name=name.partition(".")[0], format=kind)
    plan = SimpleNamespace(quant=quant, bits_per_weight=bits)
    takes = ("vision",) if "mmproj" in name else None
    entry = {"source": {"family": "llama"}, "smoke": {"ok": True, "details": {}}, **entry}
    layout = SimpleNamespace(plan=plan, takes=takes, opened=name)
    return SimpleNamespace(layout=layout, path=folder / name, entry=entry)


def said(artifacts: list[Any], folder: Path, capsys: Any, *, published: bool = False) -> Any:
    be_quiet(False)
    show_next_steps(cast(Any, artifacts), folder, "owner/name", published=published)
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()[1:]]


def test_what_runs_what_was_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, large = (
        artifact(f"{n}.gguf", "gguf", tmp_path, bits) for n, bits in (("a", 2), ("b", 5))
    )
    part = artifact("mmproj.gguf", "gguf", tmp_path, 16)
    place = str(tmp_path / "b.gguf")
    run, publish = said([small, large, part], tmp_path, capsys)
    assert run == ["run", "llama-cli", "-m", place, "--mmproj", str(tmp_path / "mmproj.gguf")]
    assert publish[1:] == ["quantkit", "publish", str(tmp_path), "--repo", "NAMESPACE/NAME"]
    [run] = said([large], tmp_path, capsys, published=True)  # the source is on the Hub
    assert run[-2:] == ["-m", place]
    t5 = artifact("b.gguf", "gguf", tmp_path, 5, source={"family": "t5"})
    assert said([t5], tmp_path, capsys)[0][1] == "llama-completion"
    embeds = {"ok": True, "details": {"embeddings": {}}}
    embedding = artifact("b.gguf", "gguf", tmp_path, 5, smoke=embeds)
    assert said([embedding], tmp_path, capsys)[0][1] == "llama-embedding"


def test_folders_are_loaded_and_published_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bnb, gptq = artifact("c", "bnb", tmp_path, 4.5), artifact("d", "gptq", tmp_path, 4)
    run, *publish = said([bnb, gptq], tmp_path, capsys)
    assert run[1:3] == ["python", "-ic"]
    compile(run[3], "typed", "exec")
    assert f'quantkit.formats.bnb import load; model = load("{tmp_path / "c"}")' in run[3]
    assert [words[-1] for words in publish] == ["bnb", "gptq"]


def test_what_is_gone_is_not_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent = artifact("a.gguf", "gguf", tmp_path, 4)
    sent.path.unlink()
    assert said([sent], tmp_path, capsys, published=True) == []
