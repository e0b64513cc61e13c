"""Commands on a checkpoint that llama.cpp's converter describes: what works, and what says why not.

Who is refused because quantkit does not know such a model by itself is refused before the converter
is asked, which may have to be fetched first.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from quantkit.checkpoint.converter import rows
from tests.checkpoint.test_scaled import rows_of
from tests.cli.command import quantkit, refusal
from tests.formats.bnb.folders import same, stored_tensors
from tests.large_experts import large_experts

pytestmark = pytest.mark.usefixtures("shared_converter")

ARCHITECTURE = (
    "is of the architecture Qwen3MoeForCausalLM, which quantkit so far reads only through"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("described") / "Model"
    return large_experts(made, hidden=256, width=256, experts=4, fp8=True)


@pytest.fixture(scope="module")
def built(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    done = quantkit("build", folder, "-q", "q8_0", "-o", out)
    assert done.code in (0, None), done.err
    return out


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("the converter is asked")


def test_what_computes_layers_says_what_to_do_instead(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "find_converter", forbidden)
    sentence = refusal(quantkit("densify", folder, "-o", tmp_path / "out", "--expert", "0"))
    assert ARCHITECTURE in sentence
    assert "works on Mixtral checkpoints only" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")  # transformers' and torch's own
def test_quants_for_transformers_are_of_what_fp8_means(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as of a checkpoint in bfloat16 that its weights times their scales were put in."""
    monkeypatch.setattr(rows, "find_converter", forbidden)
    plain = tmp_path / "Model"
    plain.mkdir()
    for file in folder.glob("*token*"):
        (plain / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    save_file(rows_of(folder, step=100), plain / "model.safetensors", {"format": "pt"})
    made = []
    for source, out in ((folder, tmp_path / "of-fp8"), (plain, tmp_path / "of-bf16")):
        wish = ("build", source, "-q", "bnb-nf4", "-o", out, "--no-smoke")
        done = quantkit(*wish)
        assert done.code in (0, None), done.err
        (built,) = out.glob("*-bnb-nf4")
        made.append(stored_tensors(built))
    assert made[0].keys() == made[1].keys()
    assert any(name.endswith(".absmax") for name in made[0])
    assert all(same(tensor, made[1][name]) for name, tensor in made[0].items())


def test_export_is_for_what_quantkit_made(folder: Path, tmp_path: Path) -> None:
    sentence = refusal(quantkit("export", folder, "-o", tmp_path / "out"))
    assert "quantkit build" in sentence


def test_inspect_shows_what_is_stored(folder: Path) -> None:
    outcome = quantkit("inspect", folder, "--json")
    assert outcome.code in (0, None), outcome.err
    found = json.loads(outcome.out)
    assert (found["kind"], found["family"]) == ("checkpoint", "qwen3moe")
    assert "llama-cpp-python" in found["described_by"]
    rows = {(row["role"], row["encoding"]): row for row in found["tensors"]}
    experts = rows["ffn_up_exps", "F8_E4M3"]
    assert (experts["count"], experts["parameters"]) == (4, 4 * 256 * 256)
    assert rows["ffn_up_exps", "F32"]["count"] == 4  # the scales
    assert rows["token_embd", "BF16"]["count"] == 1
    assert not any(role == "unused" for role, _ in rows)
    text = quantkit("inspect", folder)
    assert "described by" in text.out


def test_smoke_with_its_checkpoint(folder: Path, built: Path) -> None:
    [file] = built.glob("*.gguf")
    outcome = quantkit("smoke", file, "--checkpoint", folder)
    assert outcome.code in (0, None), outcome.err
    assert "passed" in outcome.out


def test_compare_builds_the_reference_of_it(folder: Path, built: Path) -> None:
    outcome = quantkit("compare", built, "--checkpoint", folder, "--chunks", "2", "--json")
    found = json.loads(outcome.out)
    assert [result["quant"] for result in found["artifacts"]] == ["f32", "q8_0"]


def test_an_option_of_the_converter_is_for_what_it_describes(tmp_path: Path) -> None:
    from tests.parity.cases import TRAINED

    mistral = TRAINED / "tiny-mistral"
    for command in (("inspect", mistral), ("build", mistral, "-q", "q8_0", "-o", tmp_path / "o")):
        assert "leave them out" in refusal(quantkit(*command, "--no-mtp"))
