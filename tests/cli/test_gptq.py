"""GPTQ from the command line: build, smoke test, export, and what is refused."""

import json
import re
from pathlib import Path

import pytest

from quantkit.checkpoint.folder import open_quantized
from tests.calibration.runs import TINY, text_file
from tests.cli.command import quantkit, refusal
from tests.fuzz.cases import make_gptq
from tests.random_checkpoints import random_checkpoint

SMALL = ("--chunks", 2, "--context", 64, "--jobs", 1)


def test_build_smoke_and_export(tmp_path: Path) -> None:
    out, text = tmp_path / "out", text_file(tmp_path)
    wish = (
        "build", TINY / "tiny-mistral", "-q", "gptq-int4", "-q", "q8_0", "-o", out, "-t", text,
        *SMALL, "--json",
    )  # fmt: skip
    done = quantkit(*wish)
    assert done.code == 0, done
    artifacts = json.loads(done.out)["artifacts"]
    assert {name.rpartition("-")[2] for name in artifacts} == {"int4", "Q8_0"}
    assert all(entry["smoke"]["verdict"] == "passed" for entry in artifacts.values())
    (name,) = (name for name in artifacts if name.endswith("gptq-int4"))
    exported = quantkit("export", out / name, "--to", "q8_0", "-o", tmp_path / "gguf", "--json")
    assert exported.code == 0, exported
    assert len(list((tmp_path / "gguf").glob("*.gguf"))) == 1
    again = quantkit(*wish)
    assert again.code == 0
    assert json.loads(again.out)["artifacts"] == artifacts


def test_a_dry_run_predicts_every_byte(tmp_path: Path) -> None:
    wish = ("build", TINY / "tiny-mistral", "-q", "gptq-int3", "-o", tmp_path / "out")
    alone = quantkit(*wish, "--dry-run", "--json")
    assert not (tmp_path / "out").exists()
    [plan] = json.loads(alone.out)["artifacts"]
    both = json.loads(quantkit(*wish, "-q", "q8_0", "--dry-run", "--json").out)["artifacts"]
    assert {p["quant"] for p in both} == {"gptq-int3", "q8_0"}
    assert plan in both
    built = json.loads(quantkit(*wish, *SMALL, "--no-smoke", "--json").out)["artifacts"]
    assert list(built) == [plan["name"]]
    assert "plan_sha256" not in plan  # it takes in the text, which a dry run does not read
    for file in plan["files"]:
        assert (tmp_path / "out" / file["name"]).stat().st_size == file["bytes"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--group-size", 96], "--group-size 96 does not divide the 256 columns of model.layers.0"),
        (["--group-size", 0], "--group-size 0 does not divide"),
        (["--damp", 7], "--damp 7 is not a share"),
        (["--damp", 0], "--damp 0 is not a share"),  # auto-gptq and GPTQModel refuse such a folder
        (["--text", "absent.txt"], r"absent\.txt does not exist"),
        (["--text", "short.txt"], r"short\.txt has \d+ tokens.* at least 128"),
        (["--shard-size", "1kB"], "--shard-size is smaller than .*at least"),
        (["--context", 1024], "--context 1024 is more than the 512"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(
    arguments: list[object], names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("too short")
    wish = ("build", TINY / "tiny-mistral", "-q", "gptq-int4", "-o", "out", *SMALL, *arguments)
    sentence = refusal(quantkit(*wish))
    assert re.search(names, sentence), sentence
    assert not list(Path("out").glob("*")) if Path("out").exists() else True


def test_shapes_that_the_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = random_checkpoint(tmp_path / "model", "llama", intermediate_size=272)
    sentence = refusal(quantkit("build", model, "-q", "gptq-int4", "-o", tmp_path / "out", *SMALL))
    assert "272 x 256, and the GPTQ format stores multiples of 32 only" in sentence


def test_a_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    wish = ("-q", "gptq-int4", "-o", tmp_path / "out", "-t", text, *SMALL, "--no-smoke")
    assert quantkit("build", TINY / "tiny-mistral", *wish).code == 0
    (artifact,) = (tmp_path / "out").glob("*gptq-int4")
    assert "is stored in quantized form" in refusal(quantkit("build", artifact, *wish))


@pytest.mark.parametrize("change", ["missing", "cut", "bits", "format"])
def test_a_damaged_artifact_is_not_exported(change: str, tmp_path: Path) -> None:
    text = text_file(tmp_path)
    wish = ("-q", "gptq-int4", "-o", tmp_path / "out", "-t", text, *SMALL, "--no-smoke")
    assert quantkit("build", TINY / "tiny-mistral", *wish).code == 0
    (artifact,) = (tmp_path / "out").glob("*gptq-int4")
    config = json.loads((artifact / "config.json").read_text())
    settings = config["quantization_config"]
    if change == "missing":
        settings["bits"] = 8
    elif change == "bits":
        settings["bits"] = 5
    elif change == "format":
        settings["checkpoint_format"] = "gptq_v2"
    else:
        shard = artifact / "model.safetensors"
        shard.write_bytes(shard.read_bytes()[:-100])
    (artifact / "config.json").write_text(json.dumps(config))
    sentence = refusal(quantkit("export", artifact, "-o", tmp_path / "gguf"))
    wanted = {
        "missing": "does not fit",
        "bits": r"value 5 - at `\$\.bits`",
        "format": "'gptq_v2'",
        "cut": r"model\.safetensors",
    }
    assert re.search(wanted[change], sentence), sentence
    assert not list((tmp_path).glob("gguf/*"))


def test_smoke_runs_a_folder_by_way_of_an_export(tmp_path: Path) -> None:
    folder = make_gptq(tmp_path / "Model")
    outcome = quantkit("smoke", folder)
    assert not outcome.code, outcome
    assert outcome.out.startswith("passed: Model (")
    assert outcome.err.startswith("Exporting Model, so that llama.cpp can run it")
    assert [path.name for path in tmp_path.iterdir()] == ["Model"]


def test_fit_of_a_folder_tells_what_it_stores(tmp_path: Path) -> None:
    folder = make_gptq(tmp_path / "Model")
    outcome = quantkit("fit", folder, "--gpu", "8GB", "--ram", "16GB", "--json")
    assert not outcome.code, outcome
    found = json.loads(outcome.out)
    assert (found["quants"], found["recommended"]) == ([], None)
    [stored] = found["other_formats"]
    assert stored["name"] == "Model"
    tensors = open_quantized(folder).tensors.values()
    assert stored["weight_bytes"] == sum(tensor.n_bytes for tensor in tensors)
    assert stored["fits"]
