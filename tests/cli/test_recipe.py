"""``quantkit recipe``, and builds by what it found."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.api.order import Order
from quantkit.checkpoint.gguf import read_header
from quantkit.core.errors import PlanError
from quantkit.recipes.losses import Measured, write_measured
from tests.building.builds import build
from tests.cli.command import quantkit, refusal
from tests.imatrix_writer import legacy_imatrix
from tests.parity.cases import TRAINED

MIXTRAL = TRAINED / "tiny-mixtral"


def searched(*arguments: object) -> dict[str, Any]:
    outcome = quantkit("recipe", *arguments, "--json")
    assert outcome.code in (0, None), outcome
    found: dict[str, Any] = json.loads(outcome.out)
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = tmp_path_factory.mktemp("kept") / "recipe.toml"
    searched(MIXTRAL, "--bpw", "4.4", "-o", recipe)
    return recipe


def types_in(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.encoding.name for tensor in read_header(path).tensors}


def test_a_recipe_is_searched_kept_and_built(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    budget = 4_100_000
    found = searched(MIXTRAL, "--budget", f"{budget}B", "-o", recipe)
    assert 0 <= budget - found["file_bytes"] <= 0.005 * budget
    assert found["file"] == f"Tiny-Mixtral-8x2.1M-{found['bits_per_weight']:.2f}bpw.gguf"

    done = quantkit("build", MIXTRAL, "--recipe", recipe, "-o", tmp_path / "out", "--json")
    assert done.code in (0, None), done
    file = tmp_path / "out" / found["file"]
    assert file.stat().st_size == found["file_bytes"]
    assert len(set(types_in(file).values())) > 3
    (entry,) = json.loads(done.out)["artifacts"].values()
    assert entry["quant"] == file.stem.rpartition("-")[2]
    assert entry["recipe"]["types"] == {k: v.lower() for k, v in found["types"].items()}
    assert entry["smoke"]["ok"]
    assert (
        read_header(file).metadata["general.file_type"]
        == {"q4_k_m": 15, "iq4_xs": 30}[found["base"]]
    )
    again = quantkit("build", MIXTRAL, "--recipe", recipe, "-o", tmp_path / "out")
    assert "was there already" in again.err


def test_a_build_within_a_budget_is_the_same(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    searched(MIXTRAL, "--bpw", "4.4", "-o", recipe)
    plans = [
        json.loads(quantkit("build", MIXTRAL, *options, "--dry-run", "--json").out)["artifacts"]
        for options in (["--recipe", recipe], ["--bpw", "4.4"], ["--bpw", "4.4", "--jobs", "1"])
    ]
    assert plans[0] == plans[1] == plans[2]
    (artifact,) = plans[0]
    assert 4.3 < artifact["bits_per_weight"] <= 4.4


def test_the_context_of_a_machine_is_not_that_of_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def stop(order: Order) -> None:
        asked.append((order.options.text.chunks, order.options.text.context))
        raise PlanError("Seen.")

    monkeypatch.setattr("quantkit.api.build.plan_text", stop)
    options = ["--imatrix", "auto", "-o", tmp_path / "out"]
    for words in (["--for", "24GB + 32GB", "--context", "2048"], ["--bpw", "5", "--context", "64"]):
        assert refusal(quantkit("build", MIXTRAL, *words, *options)) == "Seen."
    assert asked == [(128, 512), (128, 64)]


def test_a_recipe_is_built_beside_quants(tmp_path: Path) -> None:
    options = ["--bpw", "4.4", "-q", "q8_0", "--dry-run", "--json"]
    done = quantkit("build", MIXTRAL, *options, "-o", tmp_path)
    names = [artifact["quant"] for artifact in json.loads(done.out)["artifacts"]]
    assert names[0] == "q8_0"
    assert names[1].endswith("bpw")


def test_recipes_serve_checkpoints_and_ggufs_of_the_same_shapes(tmp_path: Path) -> None:
    (source,) = build(MIXTRAL, tmp_path, "bf16")
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    searched(MIXTRAL, "--bpw", "4.4", "-o", first)
    searched(source.path, "--bpw", "4.4", "-o", second)
    assert first.read_bytes() == second.read_bytes()
    done = quantkit("build", source.path, "--recipe", first, "--dry-run", "--json")
    assert json.loads(done.out)["artifacts"][0]["quant"].endswith("bpw")


def test_measured_losses_decide(tmp_path: Path) -> None:
    usual = searched(MIXTRAL, "--bpw", "4.4")["types"]
    names = [f"blk.{layer}.ffn_down_exps.weight" for layer in range(4)]
    tensors = [name for span in usual for name in names_in(span)]
    losses = Measured("llama", {name: 1000.0 if name in names else 0.01 for name in tensors})
    write_measured(tmp_path / "losses.json", losses)
    found = searched(MIXTRAL, "--bpw", "4.4", "--measured", tmp_path / "losses.json")["types"]
    down = {kind for span, kind in found.items() if "ffn_down" in span}
    assert down <= {"Q5_K", "Q6_K", "Q8_0"}
    assert down != {kind for span, kind in usual.items() if "ffn_down" in span}
    other = Measured("qwen3", {})
    write_measured(tmp_path / "losses.json", other)
    wish = ["recipe", MIXTRAL, "--bpw", "4.4", "--measured", tmp_path / "losses.json"]
    assert "measured of the architecture 'qwen3'" in refusal(quantkit(*wish))


def names_in(span: str) -> tuple[str, ...]:
    from quantkit.planning.spans import parse_span

    return parse_span(span).names


def test_types_and_floors_can_be_chosen() -> None:
    found = searched(MIXTRAL, "--bpw", "4.6", "--types", "q2_k,q8_0", "--no-floor", "all")
    assert set(found["types"].values()) == {"Q2_K", "Q8_0"}
    held = searched(MIXTRAL, "--bpw", "3.3")["types"]
    assert held["output.weight"] == "Q5_K"
    lifted = searched(
        MIXTRAL, "--bpw", "3.0", "--no-floor", "output", "--no-floor", "moe_attention"
    )
    assert lifted["types"]["output.weight"] != "BF16"
    assert lifted["bits_per_weight"] <= 3.0


def test_a_machine_is_filled() -> None:
    found = searched("mixtral-8x22b", "--for", "24GB + 32GB", "--context", "8192")
    assert found["share_used"] >= 0.97
    assert found["mode"] == "experts"
    assert found["file_bytes_label"] == "modelled"  # its vocabulary is not known


def test_fit_says_what_a_search_would_give() -> None:
    def searched_by_fit(*arguments: object) -> dict[str, Any]:
        outcome = quantkit("fit", *arguments, "--json")
        found: dict[str, Any] = json.loads(outcome.out)["searched"]
        return found

    found = searched_by_fit("mixtral-8x22b", "--gpu", "24GB", "--ram", "32GB")
    assert found["share_used"] >= 0.97
    large = "mistralai/Mixtral-8x22B-v0.1 --name Mixtral-8x22B"  # where its weights are
    assert found["command"] == f"quantkit build {large} --for '24GB + 32GB'"
    assert found["types"] == searched("mixtral-8x22b", "--for", "24GB + 32GB")["types"]
    few = searched_by_fit("mistral-7b", "--ram", "8GB", "--context", "512")
    small = "mistralai/Mistral-7B-v0.1 --name Mistral-7B"
    assert few["command"] == f"quantkit build {small} --for '0 + 8GB' --context 512"
    other = searched_by_fit("mistral-7b", "--ram", "8GB", "--kv-type", "q8_0")
    assert other["command"] == f"quantkit build {small} --budget {other['file_bytes']}B"
    text = quantkit("fit", MIXTRAL, "--ram", "8GB").out
    assert "Or a mixture searched for this machine: 8.53 bits" in text
    assert "searched" not in quantkit("fit", MIXTRAL, "--ram", "8GB", "-q", "q8_0").out


def test_what_is_printed_for_people(tmp_path: Path) -> None:
    lines, kept = tmp_path / "types.txt", tmp_path / "recipe.toml"
    options = ["--tensor-type-file", lines, "-o", kept]
    outcome = quantkit("recipe", MIXTRAL, "--bpw", "4.4", *options)
    first, *_, last = outcome.out.splitlines()
    assert first.startswith("4.4")
    assert "bits per weight" in first
    assert last == f"  quantkit build {MIXTRAL} --recipe {kept}"
    assert "nothing measured" in outcome.out
    assert "llama-quantize --tensor-type-file" in outcome.err
    assert all("=" in line and line[0] == "^" for line in lines.read_text().splitlines())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "Give one of --budget SIZE"),
        (["--bpw", "4", "--budget", "1GB"], "Give one of --budget SIZE"),
        (["--budget", "1MB"], "The smallest file of this model"),
        (["--budget", "1GB"], "nothing to search"),
        (["--bpw", "0"], "is not a number of bits"),
        (["--bpw", "nan"], "is not a number of bits"),
        (["--bpw", "2"], "The smallest file of this model"),
        (["--bpw", "4", "--context", "512"], "--context goes with --for"),
        (["--for", "24GB"], "must name GPUs and then RAM"),
        (["--for", "24GB + much"], "is not a size"),
        (["--for", "foo + 3GB"], "--for 'foo + 3GB' names no machine: 'foo' is neither"),
        (["--bpw", "4", "--types", ","], "--types ',' lists no types"),
        (["--bpw", "4", "--types", "q9_k"], "not a type that recipes choose from"),
        (["--bpw", "4", "--types", "q4_k"], "is left for"),
        (["--bpw", "4", "--no-floor", "cellar"], "There is no floor 'cellar'"),
        (["--budget", "much"], "is not a size"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(options: list[str], why: str) -> None:
    assert why in refusal(quantkit("recipe", MIXTRAL, *options))


def test_what_is_quantized_already_is_refused(tmp_path: Path) -> None:
    (small,) = build(MIXTRAL, tmp_path, "q8_0")
    sentence = refusal(quantkit("recipe", small.path, "--bpw", "4"))
    assert "is quantized already" in sentence


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--recipe", "R", "--bpw", "4"], "leave it or the budget out"),
        (["--bpw", "4", "--budget", "1GB"], "Give one of --budget SIZE"),
        (["--recipe", "R", "--tensor-type", "attn_v=q8_0"], "changes nothing of a recipe"),
        (["--recipe", "R", "--output-tensor-type", "q8_0"], "changes nothing of a recipe"),
        (["--recipe", "R", "--measured", "L"], "is for a search"),
        (["--bpw", "4", "--context", "512"], "is for calibration and for --for"),
        (["--recipe", "missing.toml"], "missing.toml"),
        ([], "Say what to build"),
    ],
)
def test_a_build_that_makes_no_sense_is_refused(
    options: list[str], why: str, kept: Path, tmp_path: Path
) -> None:
    wish = [kept if option == "R" else option for option in options]
    assert why in refusal(quantkit("build", MIXTRAL, *wish, "-o", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_another_model_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    searched(TRAINED / "tiny-mistral", "--bpw", "4.4", "-o", recipe)
    sentence = refusal(quantkit("build", MIXTRAL, "--recipe", recipe, "-o", tmp_path / "out"))
    assert sentence.startswith("The recipe is for another model: it says nothing of blk.0.")


@pytest.mark.parametrize("option", ["-o", "--tensor-type-file"])
def test_a_place_that_takes_no_file_is_refused_before_the_search(
    tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.fitting.subject.open_subject", None)  # calling it would fail
    folder = tmp_path / "folder"
    folder.mkdir()
    for place, why in ((folder, "is a folder"), (tmp_path / "none" / "a", "is not a folder")):
        assert why in refusal(quantkit("recipe", MIXTRAL, "--bpw", "4.4", option, place))
    assert list(tmp_path.rglob("*")) == [folder]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    places = ["-o", tmp_path / "a.toml", "--tensor-type-file", tmp_path / "." / "a.toml"]
    assert "both name" in refusal(quantkit("recipe", MIXTRAL, "--bpw", "4.4", *places))
    assert not list(tmp_path.iterdir())


def test_what_the_system_refuses_is_one_sentence() -> None:
    # Nobody makes a file there, root included.
    said = refusal(quantkit("recipe", MIXTRAL, "--bpw", "4.4", "-o", "/proc/a.toml"))
    assert said.startswith("/proc/a.toml cannot be written (")


def test_the_command_to_go_on_with_is_quoted_for_a_shell(tmp_path: Path) -> None:
    kept, lines = tmp_path / "a b.toml", tmp_path / "types of it.txt"
    wish = ["recipe", MIXTRAL, "--bpw", "4.4", "-o", kept, "--tensor-type-file", lines]
    done = quantkit(*wish)
    assert f"--recipe '{kept}'" in done.out
    assert f"--tensor-type-file '{lines}' IN.gguf" in done.err


def test_an_importance_matrix_of_another_model_is_refused_as_in_a_build(tmp_path: Path) -> None:
    matrix = tmp_path / "imatrix.dat"
    matrix.write_bytes(legacy_imatrix({"blk.0.ffn_up_exps.weight": (np.ones(256), 1)}))
    wish = ["recipe", TRAINED / "tiny-mistral", "--bpw", "4.4", "--imatrix", matrix]
    assert "was made for another model" in refusal(quantkit(*wish))


def test_the_command_to_go_on_with_names_the_importance_matrix(tmp_path: Path) -> None:
    wish = ["recipe", MIXTRAL, "--bpw", "4.4", "-o", tmp_path / "a.toml", "--imatrix", "auto"]
    assert quantkit(*wish).out.rstrip().endswith("a.toml --imatrix auto")
