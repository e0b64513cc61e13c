"""Quants for transformers of models of no family of ours, from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit.building.executor import Executor
from quantkit.building.run import Run
from quantkit.formats.dequantized import is_own_artifact
from tests.cli.command import quantkit
from tests.published import model_of
from tests.readers.synthetic import synthetic_folder

pytestmark = [
    pytest.mark.usefixtures("shared_converter"),
    pytest.mark.filterwarnings("ignore"),  # transformers' and torch's own
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_of("qwen3moe", tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize("quant", ["bnb-nf4", pytest.param("gptq-int4", marks=pytest.mark.native)])
def test_build_smoke_inspect_fit_and_export(quant: str, model: Path, tmp_path: Path) -> None:
    wish: tuple[object, ...] = ("build", model, "-q", quant, "-o", tmp_path / "out", "--json")
    if quant.startswith("gptq"):
        text = tmp_path / "text.txt"
        text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
        wish = (*wish, "-t", text, "--chunks", 2, "--context", 64)
    planned = quantkit(*wish, "--dry-run")
    (plan,) = json.loads(planned.out)["artifacts"]
    done = quantkit(*wish)
    assert done.code == 0, done
    ((name, entry),) = json.loads(done.out)["artifacts"].items()
    assert name == plan["name"]
    assert entry["smoke"]["verdict"] == "passed"
    assert entry["experts"] == 4
    folder = tmp_path / "out" / name
    assert quantkit("smoke", folder).code == 0
    fitted = quantkit("fit", folder, "--gpu", "24GB", "--ram", "32GB", "--json")
    assert fitted.code == 0, fitted
    exported = quantkit("export", folder, "--to", "q8_0", "-o", tmp_path / "gguf")
    assert exported.code == 0, exported
    wish = ("publish", tmp_path / "out", "--repo", "someone/X", "--license", "mit")
    card = quantkit(*wish, "--card-only", "--dry-run")
    assert card.code == 0, card
    assert "fits in |" in card.out
    assert f"from quantkit.formats.{quant.partition('-')[0]} import load" in card.out
    assert "No column" not in card.err
    if quant == "bnb-nf4":
        shown = json.loads(quantkit("inspect", folder, "--json").out)
        assert (shown["kind"], shown["family"]) == ("bitsandbytes artifact", "qwen3_moe")
        rows = {(row["role"], row["encoding"]): row for row in shown["tensors"]}
        assert rows["down_proj", "NF4"]["count"] == 2 * 4
        assert rows["gate", "BF16"]["count"] == 2


@pytest.mark.native  # for its time
def test_a_gptq_folder_is_what_it_is_and_no_source(tmp_path: Path) -> None:
    folder = synthetic_folder("gemma3", tmp_path)
    shown = json.loads(quantkit("inspect", folder, "--json").out)
    assert (shown["kind"], shown["family"]) == ("gptq artifact", "gemma3_text")
    assert {row["encoding"] for row in shown["tensors"] if row["role"] == "q_proj"} == {"GPTQ"}
    fitted = json.loads(quantkit("fit", folder, "--gpu", "24GB", "--ram", "32GB", "--json").out)
    assert [other["name"] for other in fitted["other_formats"]] == [folder.name]
    # Another form of GPTQ is a source, of which llama.cpp's converter is asked.
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (folder / "config.json").write_text(json.dumps(config))
    assert not is_own_artifact(folder)


@pytest.mark.native  # for its time
def test_one_command_builds_all(model: Path, tmp_path: Path) -> None:
    """GGUFs of what llama.cpp's converter describes, folders of what transformers shows."""
    out = tmp_path / "out"
    wish = ("build", model, "-q", "q8_0,bnb-nf4", "-o", out, "--no-smoke", "--json")
    planned = json.loads(quantkit(*wish, "--dry-run").out)
    assert not out.exists()
    done = quantkit(*wish)
    assert done.code == 0, done
    built = json.loads(done.out)["artifacts"]
    assert [entry["quant"] for entry in built.values()] == ["q8_0", "bnb-nf4"]
    assert {x["name"]: x["bytes"] for x in planned["artifacts"]} == {
        name: sum(file["bytes"] for file in entry["files"]) for name, entry in built.items()
    }
    # The folder is what a command of its own makes, which finds it there.
    alone = quantkit("build", model, "-q", "bnb-nf4", "-o", out, "--no-smoke", "--json")
    assert list(json.loads(alone.out)["was_there_already"]) == list(built)[1:]


@pytest.mark.native  # for its time
def test_killed_in_the_second_pass_it_goes_on_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    wish = ("build", model, "-q", "q8_0,bnb-nf4", "-o", out, "--no-smoke", "--json", "--name", "X")
    finish = Run._verify_all

    def killed(running: Run, executor: Executor) -> list[Callable[[], list[str]]]:
        if "bnb-nf4" in running._artifacts[0].layout.name:
            raise KeyboardInterrupt
        return finish(running, executor)

    monkeypatch.setattr(Run, "_verify_all", killed)
    assert "run the same command" in quantkit(*wish).err
    assert (out / "X-bnb-nf4.partial").is_dir()
    monkeypatch.undo()
    seen: list[tuple[int, int]] = []
    start = Run._write

    def noted(running: Run, executor: Executor) -> dict[Path, str]:
        seen.append((len(running._journal.done), len(running._units)))
        return start(running, executor)

    monkeypatch.setattr(Run, "_write", noted)
    again = quantkit(*wish)
    assert again.code == 0, again
    assert list(json.loads(again.out)["was_there_already"]) == ["X-Q8_0"]
    ((done, total),) = seen
    assert done == total > 0


@pytest.mark.native
def test_calibrated_ones_come_in_the_same_command(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    quants, out = "q4_k_m,bnb-nf4,gptq-int4", tmp_path / "out"
    wish = ("build", model, "-q", quants, "--imatrix", "auto", "-o", out, "--name", "X", "--json")
    done = quantkit(*wish, "-t", text, "--chunks", 2, "--context", 64)
    assert done.code == 0, done
    built = json.loads(done.out)["artifacts"]
    assert [entry["quant"] for entry in built.values()] == ["gptq-int4", "q4_k_m", "bnb-nf4"]
    assert {entry["smoke"]["verdict"] for entry in built.values()} == {"passed"}
    assert {line.partition(" ")[0] for line in done.err.splitlines() if "formats." in line} == {
        "X-gptq-int4",
        "X-bnb-nf4",
    }
