"""Builds within a budget: candidates are measured, and the best is delivered.

llama.cpp is left out: what it would measure is made up, so that each candidate wins in turn. Rarer
ways run with the native tests, for time; there llama.cpp measures once, too.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantkit.checkpoint.gguf import read_header
from quantkit.checkpoint.open import open_checkpoint, open_model
from quantkit.core.errors import CompareError
from quantkit.core.topics import topics_to_choose_by
from quantkit.recipes.candidates import known_candidates, quantizable
from quantkit.recipes.contest import FOLDER
from quantkit.recipes.losses import Measured, write_measured
from quantkit.verification.machine import Memory
from tests.building.builds import build, manifest_of
from tests.cli.command import Outcome, quantkit, refusal
from tests.parity.cases import TRAINED

MISTRAL = TRAINED / "tiny-mistral"
BUDGET = ("--bpw", "4.6")


class Measuring:
    """Stands for `compare`: a made-up divergence for each candidate, by its number."""

    def __init__(self, *klds: float) -> None:
        self.klds = klds
        self.measured: list[int] = []
        self.before: Callable[[int], None] = lambda _: None

    def __call__(self, subjects: Sequence[Any], reference: Any, **options: Any) -> Any:
        (subject,) = subjects
        number = int(subject.name.removesuffix(".gguf").rpartition("-")[2])
        assert reference.quant == "bf16"
        self.before(number)
        self.measured.append(number)
        own = SimpleNamespace(is_reference=True, speed=None)
        measures = SimpleNamespace(kld=self.klds[number - 1], kld_pm=1e-4)
        row = SimpleNamespace(is_reference=False, measures=measures, cosines=None)
        return SimpleNamespace(results=[own, row], windows=7, context=options["context"])


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Measuring]:
    def put(*klds: float) -> Measuring:
        stand_in = Measuring(*klds)
        monkeypatch.setattr("quantkit.recipes.contest.compare", stand_in)
        return stand_in

    return put


def built(out: Path, *options: object) -> Outcome:
    done = quantkit("build", MISTRAL, *BUDGET, "--no-smoke", "-o", out, "--jobs", "1", *options)
    assert done.code in (0, None), done
    return done


def planned(*options: object) -> list[dict[str, Any]]:
    done = quantkit("build", MISTRAL, *BUDGET, "--dry-run", "--json", *options)
    found: list[dict[str, Any]] = json.loads(done.out)["candidates"]
    return found


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_the_best_of_several_searches_is_delivered(
    tmp_path: Path, measuring: Callable[..., Measuring]
) -> None:
    rows = planned()
    stand_in = measuring(0.03, 0.01, 0.02)
    done = built(tmp_path)
    assert stand_in.measured == [1, 2, 3]
    ((name, entry),) = manifest_of(tmp_path).items()
    file = tmp_path / f"{name}.gguf"
    assert files_in(tmp_path) == {file.name, "quantkit.json"}
    assert file.stat().st_size == rows[1]["bytes"]
    assert entry["plan_sha256"] == rows[1]["plan_sha256"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == entry["files"][0]["sha256"]
    choice = entry["choice"]
    assert [row["kld"] for row in choice["candidates"]] == [0.03, 0.01, 0.02]
    assert [row["delivered"] for row in choice["candidates"]] == [False, True, False]
    assert choice["candidates"][-1]["way"] == "fixed mixture"
    assert (choice["measured"], choice["windows"], choice["reference"]) == (True, 7, "bf16")
    assert len(choice["text_sha256"]) == 64
    stored = {t.name: t.encoding.name.lower() for t in read_header(file).tensors}
    assert stored["output.weight"] == entry["recipe"]["types"]["output.weight"]
    assert "was there already" not in done.err
    assert "Best: searched" in done.err


def test_the_fixed_mixture_is_delivered_where_it_is_best(
    tmp_path: Path, measuring: Callable[..., Measuring]
) -> None:
    fixed = planned()[-1]
    measuring(0.03, 0.02, 0.01)
    done = built(tmp_path)
    ((name, entry),) = manifest_of(tmp_path).items()
    assert entry["quant"] == fixed["quant"]
    assert name.endswith(fixed["quant"].upper())
    assert "recipe" not in entry
    assert entry["choice"]["candidates"][-1]["delivered"]
    assert f"The fixed mixture {fixed['quant']} beats everything that was searched" in done.err
    assert files_in(tmp_path) == {f"{name}.gguf", "quantkit.json"}


def test_a_build_that_is_killed_between_candidates_goes_on_there(
    tmp_path: Path, measuring: Callable[..., Measuring]
) -> None:
    killed = measuring(0.02, 0.01, 0.03)

    def stop(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    killed.before = stop
    wish = ["build", MISTRAL, *BUDGET, "--no-smoke", "-o", tmp_path, "--jobs", "1"]
    assert quantkit(*wish).code == 130
    assert killed.measured == [1]
    (folder,) = (tmp_path / FOLDER).iterdir()
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*.gguf")}
    assert len(before) == 4  # the reference is one

    resumed = measuring(0.9, 0.01, 0.03)
    seen: dict[Path, int] = {}
    resumed.before = lambda _: seen.update({f: f.stat().st_mtime_ns for f in before})
    built(tmp_path)
    assert resumed.measured == [2, 3]
    assert seen == before  # nothing was built again
    (entry,) = manifest_of(tmp_path).values()
    assert [row["kld"] for row in entry["choice"]["candidates"]] == [0.02, 0.01, 0.03]
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.native  # for its time
def test_a_kill_while_the_winner_is_put_in_its_place_loses_nothing(
    tmp_path: Path, measuring: Callable[..., Measuring], monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(0.02, 0.01, 0.03)

    def stop(_self: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    wish = ["build", MISTRAL, *BUDGET, "--no-smoke", "-o", tmp_path, "--jobs", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop)
        patch.setattr("quantkit.building.output.PartialArtifact.publish", _publish_by_replacing)
        assert quantkit(*wish).code == 130
    assert not list(tmp_path.glob("*.gguf"))
    again = measuring(0.9, 0.9, 0.9)
    built(tmp_path)
    assert again.measured == []
    (entry,) = manifest_of(tmp_path).values()
    assert entry["choice"]["candidates"][1]["delivered"]
    third = measuring(0.9, 0.9, 0.9)
    assert "was there already" in built(tmp_path).err
    assert third.measured == []


def _publish_by_replacing(self: Any) -> Path:
    final: Path = self.final
    self.partial.replace(final)
    return final


@pytest.mark.native  # for its time
def test_what_is_not_measured_says_so(tmp_path: Path, measuring: Callable[..., Measuring]) -> None:
    stand_in = measuring()
    built(tmp_path, "--no-compare")
    (entry,) = manifest_of(tmp_path).values()
    assert entry["choice"] == {"measured": False, "why": "--no-compare left that out"}
    assert stand_in.measured == []
    # Measured after all, what already exists says so.
    measuring(0.01, 0.02, 0.03)
    built(tmp_path)
    (entry,) = manifest_of(tmp_path).values()
    assert entry["choice"]["measured"]
    built(tmp_path, "--no-compare")
    (entry,) = manifest_of(tmp_path).values()
    assert entry["choice"]["measured"]  # what was found stays


def test_a_model_that_does_not_run_here_is_built_all_the_same(
    tmp_path: Path, measuring: Callable[..., Measuring], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = measuring()
    small = Memory(total=1_000_000, available=1_000_000, limited=True)
    monkeypatch.setattr("quantkit.verification.machine.memory", lambda: small)
    done = built(tmp_path)
    assert "No candidates are measured: the unquantized model (5.8 MB) does not fit" in done.err
    (entry,) = manifest_of(tmp_path).values()
    assert entry["choice"]["why"].startswith("the unquantized model (5.8 MB) does not fit")
    assert stand_in.measured == []
    wish = ["build", MISTRAL, *BUDGET, "--compare", "--no-smoke", "-o", tmp_path / "other"]
    assert refusal(quantkit(*wish)).startswith("Candidates cannot be measured: the unquantized")


@pytest.mark.native  # for its time
def test_where_measuring_fails_what_was_asked_for_is_built(
    tmp_path: Path, measuring: Callable[..., Measuring]
) -> None:
    error = CompareError("It is odd.")

    def fail(_number: int) -> None:
        raise error

    stand_in = measuring()
    stand_in.before = fail
    done = built(tmp_path)
    assert f"No candidates were measured: {error}" in done.err
    (entry,) = manifest_of(tmp_path).values()
    assert entry["plan_sha256"] == planned()[0]["plan_sha256"]
    assert entry["choice"] == {"measured": False, "why": str(error).rstrip(".")}
    assert files_in(tmp_path) == {entry["files"][0]["name"], "quantkit.json"}


@pytest.mark.native
def test_a_disk_that_is_too_small_is_said(
    tmp_path: Path, measuring: Callable[..., Measuring], monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring()
    monkeypatch.setattr("quantkit.building.output.room_in", lambda _: 3_000_000)
    assert "of disk, and 3 MB are free in" in built(tmp_path).err


def test_a_dry_run_shows_the_candidates_to_the_byte(tmp_path: Path) -> None:
    rows = planned("-o", tmp_path / "out")
    assert [row["way"] for row in rows[:1]] == ["searched"]
    assert [row["way"] for row in rows[-1:]] == ["fixed mixture"]
    assert all(row["bits_per_weight"] <= 4.6 for row in rows)
    text = quantkit("build", MISTRAL, *BUDGET, "--dry-run", "-o", tmp_path / "out")
    assert all(f"{row['bytes']:,}" in text.out for row in rows)
    assert "of disk in" in text.err
    assert not (tmp_path / "out").exists()
    none = quantkit("build", MISTRAL, *BUDGET, "--dry-run", "--json", "--no-compare")
    assert "candidates" not in json.loads(none.out)


def test_a_fixed_mixture_that_is_built_anyway_is_built_once(
    tmp_path: Path, measuring: Callable[..., Measuring]
) -> None:
    fixed = planned()[-1]["quant"]
    measuring(0.03, 0.02, 0.01)
    built(tmp_path, "-q", fixed)
    (entry,) = manifest_of(tmp_path).values()
    assert entry["quant"] == fixed
    assert entry["choice"]["candidates"][-1]["delivered"]


@pytest.mark.native
def test_a_gguf_is_measured_against_itself(
    tmp_path: Path, measuring: Callable[..., Measuring]
) -> None:
    (source,) = build(MISTRAL, tmp_path / "source", "bf16")
    stand_in = measuring(0.01, 0.01, 0.03)  # of equals the first is delivered
    seen: list[set[str]] = []
    stand_in.before = lambda _: seen.append(files_in(tmp_path / "out" / FOLDER))
    out = tmp_path / "out"
    done = quantkit("build", source.path, *BUDGET, "--no-smoke", "-o", out, "--jobs", "1")
    assert done.code in (0, None), done
    (entry,) = manifest_of(out).values()
    assert entry["choice"]["candidates"][0]["delivered"]
    assert entry["choice"]["reference"] == "the source"
    assert len([name for name in seen[0] if name.endswith(".gguf")]) == 3


@pytest.mark.native
def test_shards_are_built_of_the_winner(
    tmp_path: Path, measuring: Callable[..., Measuring]
) -> None:
    measuring(0.02, 0.01, 0.03)
    built(tmp_path, "--shard-size", "1MB")
    (entry,) = manifest_of(tmp_path).values()
    assert len(entry["files"]) > 1
    assert entry["choice"]["candidates"][1]["delivered"]
    assert not (tmp_path / FOLDER).exists()


def test_text_that_calibration_sees_is_refused(tmp_path: Path) -> None:
    seen, whole = tmp_path / "seen.txt", tmp_path / "whole.txt"
    seen.write_text("Some words.\n" * 100)
    whole.write_text("Other words.\n" + seen.read_text())
    wish = ["build", MISTRAL, *BUDGET, "--imatrix", "auto", "--text", whole]
    sentence = refusal(quantkit(*wish, "--compare-text", seen, "-o", tmp_path / "out"))
    assert "on text that nothing was fitted to" in sentence
    assert not (tmp_path / "out").exists()


def test_types_are_chosen_in_a_build_as_in_a_search() -> None:
    options = ["--types", "q4_k,q6_k", "--no-floor", "all", "--dry-run", "--json", "--no-compare"]
    done = quantkit("build", MISTRAL, *BUDGET, *options)
    (artifact,) = json.loads(done.out)["artifacts"]
    kinds = {tensor["encoding"] for tensor in artifact["files"][0]["tensors"]}
    assert kinds <= {"Q4_K", "Q6_K", "F32"}


@pytest.mark.native
def test_recipes_of_doctored_losses_lose_to_the_fixed_mixture(tmp_path: Path) -> None:
    """llama.cpp measures; these losses say that feed-forward layers are nothing to care for."""
    targets = quantizable(open_model(open_checkpoint(MISTRAL)))
    losses = Measured(
        "llama",
        {target.name: 1.0 for target in targets},
        {
            (target.name, kind.name): 1e-12
            for target in targets
            if ".ffn_" in target.name
            for kind in known_candidates()
        },
    )
    write_measured(tmp_path / "losses.json", losses)
    text = tmp_path / "judged.txt"
    text.write_text(topics_to_choose_by()[:8000])
    wish = ["--measured", tmp_path / "losses.json", "--compare-text", text]
    done = quantkit("build", MISTRAL, *BUDGET, *wish, "-o", tmp_path / "out", "--jobs", "1")
    assert done.code in (0, None), done
    (entry,) = manifest_of(tmp_path / "out").values()
    fixed = entry["choice"]["candidates"][-1]
    assert (fixed["way"], fixed["delivered"]) == ("fixed mixture", True)
    assert entry["quant"] == fixed["quant"]
    assert entry["smoke"]["ok"]
    others = [row["kld"] for row in entry["choice"]["candidates"][:-1]]
    assert all(kld > 2 * fixed["kld"] > 0 for kld in others)
    assert entry["choice"]["text_sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert "beats everything that was searched" in done.err

    shown = quantkit("publish", tmp_path / "out", "--repo", "a/b", "--dry-run", "--card-only")
    assert "Chosen of" in shown.out, shown
