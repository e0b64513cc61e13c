"""`quantkit.plan`, `build` and `calibrate`: what the commands do, from Python."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import quantkit
from quantkit import (
    BnbOptions,
    BudgetOptions,
    BuildOptions,
    CalibrateOptions,
    CheckOptions,
    EncodingOptions,
    GptqOptions,
    Progress,
    TextOptions,
)
from quantkit.api.options import changed
from quantkit.api.passes import Built
from quantkit.building.manifest import NAME
from quantkit.core.errors import OutputError, PlanError, SmokeError
from tests.calibration.runs import TINY as CHECKPOINTS
from tests.cli.command import quantkit as command
from tests.cli.command import refusal, sentences

TINY = CHECKPOINTS / "tiny-mixtral"
QUANTS = ["q4_0", "bf16"]
# ggml's kernels give the same bytes, and need not be compiled.
PLAIN = EncodingOptions(kernel="ggml")
UNTESTED = BuildOptions(encoding=PLAIN, checks=CheckOptions(smoke=False))
TYPED = ("-q", "q4_0", "-q", "bf16", "--kernel", "ggml")


def manifest(folder: Path) -> Any:
    """A manifest but for when files were written."""
    return json.loads(
        re.sub(r'"modified_ns": \d+', '"modified_ns": 0', (folder / NAME).read_text())
    )


def test_a_build_is_what_the_command_builds(tmp_path: Path) -> None:
    steps: list[Progress] = []
    said: list[str] = []
    seen: list[Built] = []
    here, there = tmp_path / "here", tmp_path / "there"
    built = quantkit.build(
        TINY,
        QUANTS,
        UNTESTED,
        out=here,
        progress=steps.append,
        note=said.append,
        finished=seen.append,
    )
    done = command("build", TINY, *TYPED, "--no-smoke", "-o", there, "--json")
    assert done.code in (None, 0), done
    assert seen == [built]
    assert built.ok
    assert built.folder == here
    for artifact in built.artifacts:
        assert artifact.path.read_bytes() == (there / artifact.path.name).read_bytes()
    assert len(built.artifacts) == len(QUANTS)
    document = json.loads(done.out)
    assert list(document["artifacts"]) == [a.name for a in built.artifacts]
    for artifact in built.artifacts:
        assert artifact.n_bytes == artifact.path.stat().st_size
        assert artifact.bits_per_weight > 4
        assert artifact.verdict == "not run"
    assert manifest(here) == manifest(there)
    assert [line.replace(str(here), str(there)) for line in said] == sentences(done.err)
    assert [step.over for step in steps].count(True) == 1
    assert steps[-1].over
    assert {step.title.split()[0] for step in steps} >= {"Encoding", "Verifying"}


def test_what_fails_its_smoke_test_is_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.building.artifact import Check

    broken = Check(ok=False, verdict="it is broken", record={"verdict": "it is broken"})
    monkeypatch.setattr("quantkit.api.passes.check_artifact", lambda *_: broken)
    options = BuildOptions(encoding=PLAIN)
    built = quantkit.build(TINY, ["q4_0"], options, out=tmp_path)
    assert not built.ok
    assert built.artifacts[0].path.name.endswith(".rejected")
    assert built.artifacts[0].verdict == "it is broken"
    with pytest.raises(SmokeError) as caught:
        built.raise_if_failed()
    # The command shows the same, and fails with the sentence.
    failed = command("build", TINY, "-q", "q4_0", "--kernel", "ggml", "-o", tmp_path / "again")
    assert failed.code == 1
    assert "it is broken" in failed.out
    assert sentences(failed.err)[-1] == f"Error: {caught.value}"


def test_a_plan_is_what_the_dry_run_shows(tmp_path: Path) -> None:
    options = BuildOptions(encoding=PLAIN, budget=BudgetOptions(bpw=4.5))
    said: list[str] = []
    planned = quantkit.plan(TINY, [*QUANTS, "gptq-int4"], options, out=tmp_path, note=said.append)
    typed = (*TYPED, "-q", "gptq-int4", "--bpw", "4.5", "-o", tmp_path, "--dry-run", "--json")
    done = command("build", TINY, *typed)
    document = json.loads(done.out)
    assert planned.name == document["name"]
    assert planned.projector is None
    expected = [(each["name"], each["bytes"]) for each in document["artifacts"]]
    assert [(layout.name, layout.n_bytes) for layout in planned.layouts] == expected
    assert [c.n_bytes for c in planned.candidates] == [c["bytes"] for c in document["candidates"]]
    assert said == sentences(done.err)
    assert not list(tmp_path.iterdir())


def test_calibrating_is_what_the_command_does(tmp_path: Path) -> None:
    steps: list[Progress] = []
    said: list[str] = []
    here, there = tmp_path / "here.gguf", tmp_path / "there.gguf"
    few = CalibrateOptions(text=TextOptions(chunks=2, context=64))
    made = quantkit.calibrate(TINY, here, few, progress=steps.append, note=said.append)
    done = command("calibrate", TINY, "-o", there, "--chunks", 2, "--context", 64, "--json")
    document = json.loads(done.out)
    assert here.read_bytes() == there.read_bytes()
    assert made.path == here
    assert (made.chunks, made.context, made.unit) == (2, 64, "layers")
    assert document["perplexity"] == made.perplexity
    assert [row["tokens"] for row in document["routing"]] == [
        list(one.tokens) for one in made.routing.values()
    ]
    assert said == sentences(done.err)
    assert steps[-1].over
    assert {step.unit for step in steps} == {"layer"}
    with pytest.raises(OutputError) as caught:
        quantkit.calibrate(TINY, here, few)
    assert str(caught.value).startswith(f"{here} already exists")


@pytest.mark.parametrize(
    ("options", "typed"),
    [
        (BuildOptions(gptq=GptqOptions(group_size=64)), ("--group-size", "64")),
        (BuildOptions(gptq=GptqOptions(act_order=False)), ("--no-desc-act",)),
        (BuildOptions(bnb=BnbOptions(keep=("lm_head",))), ("--keep", "lm_head")),
        (BuildOptions(text=TextOptions(chunks=4)), ("--chunks", "4")),
        (BuildOptions(budget=BudgetOptions(bpw=4, budget="1GB")), ("--bpw", 4, "--budget", "1GB")),
        (BuildOptions(encoding=EncodingOptions(tensor_type=("a",))), ("--tensor-type", "a")),
    ],
)
def test_what_makes_no_sense_is_refused_alike(
    options: BuildOptions, typed: tuple[str, ...], tmp_path: Path
) -> None:
    sentence = refusal(command("build", TINY, "-q", "q4_0", *typed, "-o", tmp_path / "out"))
    for function in (quantkit.plan, quantkit.build):
        with pytest.raises(PlanError) as caught:
            function(TINY, ["q4_0"], options, out=tmp_path / "out")
        assert str(caught.value) == sentence
    assert not (tmp_path / "out").exists()


def test_what_a_calibration_has_no_use_for_is_refused_alike(tmp_path: Path) -> None:
    out = tmp_path / "matrix.gguf"
    sentence = refusal(command("calibrate", TINY, "--gpu-layers", "1", "-o", out))
    with pytest.raises(PlanError) as caught:
        quantkit.calibrate(TINY, out, CalibrateOptions(gpu_layers=1))
    assert str(caught.value) == sentence


def test_options_that_nobody_changed_are_not_given() -> None:
    assert not changed(BuildOptions())
    assert not changed(CalibrateOptions())
    assert changed(UNTESTED) == {"kernel", "smoke"}
