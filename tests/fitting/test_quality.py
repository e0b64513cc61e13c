"""What quants are ranked by: a scale, what beats what, and which is recommended."""

import json
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from quantkit.fitting.answer import Answer, answer
from quantkit.fitting.commands import Typed, steps_to
from quantkit.fitting.hardware import Gpu, Machine
from quantkit.fitting.memory import GIB, Weights, weigh
from quantkit.fitting.placement import Placement
from quantkit.fitting.probe import probe
from quantkit.fitting.quality import (
    Loss,
    Scale,
    beaten_by,
    choose_scale,
    find_comparison,
    measured_scale,
    published_scale,
    recorded_scale,
)
from quantkit.fitting.settings import ContextSettings, FitError
from quantkit.fitting.speed import REACHED, read_per_token, tokens_per_second
from quantkit.fitting.subject import PlanOptions, SizedModel, open_subject
from quantkit.planning.quants import find_quants
from quantkit.verification.divergence import Measures
from tests.building.builds import build
from tests.cli.command import quantkit, refusal
from tests.parity.cases import TRAINED

TINY = TRAINED / "tiny-mixtral"
QUANTS = ("f16", "q8_0", "q4_k_m", "q4_0", "q2_k", "iq2_m", "iq2_xs")


@pytest.fixture(scope="module")
def tiny() -> SizedModel:
    return open_subject(str(TINY), PlanOptions(find_quants(QUANTS)))


def box(ram: int) -> Machine:
    return Machine("box", (), ram, None, unified=False, source="")


def scale_of(**losses: float) -> Scale:
    return Scale(
        "measured", "a text", {name: Loss(x, x, weighted=False) for name, x in losses.items()}
    )


def comparison(subject: SizedModel, file: Path, **losses: float) -> Path:
    """A compare.json as `compare` writes it, with these losses."""
    sizes = {variant.name: variant.file_bytes for variant in subject.variants}
    figures: dict[str, Any] = {field.name: 0.5 for field in fields(Measures)}
    figures |= {"n_tokens": 9, "kld_percentiles": [0.5] * 5}
    verdict = {"ok": True, "reason": "healthy"}
    rows: list[dict[str, Any]] = [
        {
            "name": f"x-{name}.gguf", "bytes": sizes[name], "quant": name, "is_reference": False,
            "measures": figures | {"kld": loss}, "verdict": verdict,
        }
        for name, loss in losses.items()
    ]  # fmt: skip
    kept = {
        "reference": "f16.gguf", "text": "a text", "text_sha256": "ab" * 32, "context": 512,
        "windows": 4, "threads": 1, "artifacts": rows,
    }  # fmt: skip
    file.write_text(json.dumps(kept))
    return file


# --- scales ------------------------------------------------------------------------------------


def test_published_figures_are_those_of_what_is_built() -> None:
    plain, weighted = published_scale(weighted=False), published_scale(weighted=True)
    assert plain.losses["q4_k_m"] == Loss(0.031273, 0.028152, weighted=False)
    assert weighted.losses["q4_k_m"] == Loss(0.028152, 0.028152, weighted=True)
    assert plain.losses["iq2_m"] == weighted.losses["iq2_m"] == Loss(0.325989, 0.325989, True)
    assert weighted.losses["q6_k"] == Loss(0.005452, 0.005452, weighted=False)
    assert not {"f32", "bf16", "f16", "tq2_0", "q4_k_l"} & plain.losses.keys()


def test_what_is_smaller_and_loses_less_beats(tiny: SizedModel) -> None:
    variants = {variant.name: variant for variant in tiny.variants}
    scale = published_scale(weighted=False)

    def beats(name: str) -> str | None:
        found = beaten_by(variants[name], tiny.variants, scale)
        return found.name if found is not None else None

    assert variants["iq2_m"].file_bytes < variants["q2_k"].file_bytes
    assert [beats(name) for name in ("q8_0", "q4_k_m", "q2_k", "iq2_m")] == [
        None, None, "iq2_m", None,
    ]  # fmt: skip
    assert beats("f16") is None  # of which no loss is known
    # One is not beaten that loses less than the other when it is built in its best way.
    close = Scale("published", "", {"q2_k": Loss(2.0, 0.9, False), "iq2_m": Loss(1.0, 1.0, True)})
    assert beaten_by(variants["q2_k"], tiny.variants, close) is None


def test_a_measured_scale_is_taken_where_it_tells_of_all_that_fit() -> None:
    published = published_scale(weighted=False)
    some = scale_of(q4_k_m=0.1, q8_0=0.01)
    assert choose_scale(some, published, ["q4_k_m", "q8_0", "f16"]) == (some, "")
    chosen, why = choose_scale(some, published, ["q4_k_m", "q8_0", "q2_k"])
    assert chosen is published
    assert "2 of the 3 quants that fit were measured" in why
    assert choose_scale(None, published, ["q2_k"]) == (published, "")


def test_a_comparison_is_read_and_must_be_of_this_model(tiny: SizedModel, tmp_path: Path) -> None:
    file = comparison(tiny, tmp_path / "compare.json", q8_0=0.001, q4_k_m=0.5)
    scale = measured_scale(file, tiny)
    assert scale is not None
    assert (scale.label, scale.losses["q4_k_m"].kld) == ("measured", 0.5)
    assert find_comparison(str(tmp_path)) == file
    assert find_comparison(str(TINY)) is find_comparison("mixtral-8x22b") is None
    other = open_subject(str(TRAINED / "tiny-mistral"), PlanOptions(find_quants(["q8_0"])))
    with pytest.raises(FitError, match="it is of another model"):
        measured_scale(file, other)
    file.write_text("[]")
    with pytest.raises(FitError, match=r"compare\.json"):
        measured_scale(file, tiny)


def test_what_a_build_measured_is_read_from_its_manifest(tmp_path: Path) -> None:
    build(TINY, tmp_path, "q8_0", "q4_k_m", check=None)
    subject = open_subject(str(tmp_path))
    assert recorded_scale(tmp_path, subject) is None
    manifest = json.loads((tmp_path / "quantkit.json").read_text())
    for n, entry in enumerate(manifest["artifacts"].values()):
        row = {"quant": "q", "bytes": 1, "plan_sha256": "0" * 64}
        won = {**row, "way": "b", "kld": n + 0.5, "delivered": True}
        entry["choice"] = {
            "measured": True,
            "text": "a text",
            "text_sha256": "0" * 64,
            "candidates": [{**row, "way": "a", "kld": 9.0}, won],
        }
    (tmp_path / "quantkit.json").write_text(json.dumps(manifest))
    scale = recorded_scale(tmp_path, subject)
    assert scale is not None
    assert sorted(loss.kld for loss in scale.losses.values()) == [0.5, 1.5]
    assert scale.losses.keys() == {"q8_0", "q4_k_m"}
    found = json.loads(quantkit("fit", tmp_path, "--ram", "4GB", "--json").out)
    assert found["ranked_by"] == {"label": "measured", "source": "quantkit.json, on a text"}
    least = min(scale.losses, key=lambda name: scale.losses[name].kld)
    assert found["recommended"] == least
    assert found["get"] is None
    assert f"-m {tmp_path}/" in found["run"]
    # Figures on two texts are on no common scale.
    last = list(manifest["artifacts"].values())[-1]
    last["choice"]["text_sha256"] = "1" * 64
    (tmp_path / "quantkit.json").write_text(json.dumps(manifest))
    assert recorded_scale(tmp_path, subject) is None


# --- the choice --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(tiny: SizedModel) -> Any:
    curve = probe(tiny, ContextSettings(512))

    def ask(ram: int, measured: Scale | None = None) -> Answer:
        return answer(tiny, curve, box(ram), measured)

    return ask


def test_the_least_loss_that_fits_is_recommended(answers: Any) -> None:
    sizes = {row.variant.name: row.ram_alone for row in answers(GIB).rows}
    assert answers(GIB).recommended == "q8_0"
    assert answers(sizes["q4_k_m"]).recommended == "q4_k_m"
    assert answers(sizes["q4_0"]).recommended == "q4_0"
    # Below 4 bits, what is published says that the smaller loses less.
    found = answers(sizes["q2_k"])
    assert found.recommended == "iq2_m"
    assert {r.variant.name: r.beaten_by for r in found.rows}["q2_k"] == "iq2_m"
    # What was measured of this very model counts more.
    measured = scale_of(q2_k=0.1, iq2_m=0.2, iq2_xs=0.3)
    assert answers(sizes["q2_k"], measured).recommended == "q2_k"
    assert answers(sizes["q2_k"], measured).scale is measured
    some = scale_of(q2_k=0.1)
    assert answers(sizes["q2_k"], some).recommended == "iq2_m"
    assert "1 of the 3 quants that fit were measured" in answers(sizes["q2_k"], some).warnings[0]


def test_the_page_says_what_it_ranks_by(tiny: SizedModel, tmp_path: Path) -> None:
    file = comparison(tiny, tmp_path / "measured.json", q4_k_m=0.25)
    command = ("fit", TINY, "-q", "q4_k_m", "--ram", "2GB", "--compare", file)
    text = quantkit(*command).out
    assert "Mean KLD 0.25 (measured by measured.json)." in text
    found = json.loads(quantkit(*command, "--json").out)
    assert found["ranked_by"] == {"label": "measured", "source": "measured.json, on a text"}
    [row] = found["quants"]
    assert (row["kld"], row["kld_label"], row["beaten_by"]) == (0.25, "measured", None)
    assert shlex.split(found["get"]) == ["quantkit", "build", str(TINY), "-q", "q4_k_m"]
    comparison(tiny, file, q8_0=0.1)
    assert "figures of none of these quants" in refusal(quantkit(*command))
    assert "does not exist" in refusal(quantkit(*command[:-1], tmp_path / "no.json"))


# --- commands ----------------------------------------------------------------------------------


def test_commands_can_be_typed(tiny: SizedModel) -> None:
    by_name = {variant.name: variant for variant in tiny.variants}
    loss = published_scale(weighted=False).losses
    run = "llama-server -m {} -c 512"

    def steps(name: str, subject: SizedModel = tiny, **typed: Any) -> tuple[str, str]:
        variant = by_name[name]
        line = run.format(shlex.quote(variant.file_name))
        asked = Typed(str(typed.pop("model", "a folder")), **typed)
        found = steps_to(variant, loss.get(name), line, subject, asked, "out")
        return found.get, found.run

    q4 = by_name["q4_k_m"].file_name
    assert steps("q4_k_m") == (
        "quantkit build 'a folder' -q q4_k_m", run.format(f"out/{q4}"),
    )  # fmt: skip
    assert steps("iq2_m")[0].endswith("-q iq2_m --imatrix auto")
    given = steps("q4_k_m", imatrix=Path("my.gguf"), shard_size="2GB", mtp=False)[0]
    assert given.endswith("--no-mtp -q q4_k_m --imatrix my.gguf --shard-size 2GB")
    config = replace(tiny, origin="config")
    assert steps("q4_k_m", config)[0] == "quantkit build CHECKPOINT -q q4_k_m"
    here = replace(tiny, origin="gguf", buildable=None)
    by_name["q4_k_m"] = replace(by_name["q4_k_m"], path="some where/x.gguf")
    assert steps("q4_k_m", here) == ("", "llama-server -m 'some where/x.gguf' -c 512")
    hub = replace(tiny, origin="hub", buildable=None)
    assert steps("q4_k_m", hub, model="a/b/sub/x.gguf@v1") == (
        "hf download a/b sub/x.gguf --revision v1 --local-dir .",
        "llama-server -m sub/x.gguf -c 512",
    )
    by_name["q4_k_m"] = replace(by_name["q4_k_m"], n_files=3)
    split = steps("q4_k_m", hub, model="a/b/x-00001-of-00003.gguf")[0]
    assert split == "hf download a/b --include 'x-*-of-*.gguf' --local-dir ."


# --- speed -------------------------------------------------------------------------------------


def test_a_token_reads_every_weight_that_it_uses_once(tiny: SizedModel) -> None:
    [q8] = [variant for variant in tiny.variants if variant.name == "q8_0"]
    weights = weigh(q8, tiny.shape)
    used = sum(weights.layers) + weights.output
    for n_cpu_moe, counts, host in ((0, (5,), False), (2, (5,), True), (0, (2, 3), False)):
        placement = Placement("gpu", 5, n_cpu_moe, counts, (), 0, 0)
        read = read_per_token(weights, placement, 0.25)
        assert sum(read.values()) == pytest.approx(used + sum(weights.experts) / 4)
        assert bool(read["RAM"]) is host
    alone = Placement("ram", 0, 0, (), (), 0, 0)
    assert read_per_token(weights, alone, 1.0)["RAM"] == used + sum(weights.experts)


def test_speed_is_estimated_where_the_bandwidths_are_known() -> None:
    weights = Weights(0, 10, 0, (20, 20), (50, 50), 50)
    fast = Machine("", (Gpu("", 1, 1000.0),), 1, None, False, "", ram_bandwidth=10.0)
    whole = Placement("gpu", 3, 0, (3,), (), 0, 0)
    assert tokens_per_second(weights, whole, fast, 0.5) == pytest.approx(REACHED * 10)
    offloaded = replace(whole, mode="experts", n_cpu_moe=1)
    expected = REACHED / (75 / 1000 + 25 / 10)
    assert tokens_per_second(weights, offloaded, fast, 0.5) == pytest.approx(expected)
    unknown = replace(fast, ram_bandwidth=None)
    assert tokens_per_second(weights, whole, unknown, 0.5) == pytest.approx(REACHED * 10)
    assert tokens_per_second(weights, offloaded, unknown, 0.5) is None
    assert tokens_per_second(weights, replace(whole, mode="disk"), fast, 0.5) is None
