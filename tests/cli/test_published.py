"""Quants for transformers of models of no family of ours, from the command line."""

import json
from pathlib import Path

import pytest

from tests.cli.command import quantkit, refusal
from tests.published import model_of

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
    if quant == "bnb-nf4":
        shown = json.loads(quantkit("inspect", folder, "--json").out)
        assert (shown["kind"], shown["family"]) == ("bitsandbytes artifact", "qwen3_moe")
        rows = {(row["role"], row["encoding"]): row for row in shown["tensors"]}
        assert rows["down_proj", "NF4"]["count"] == 2 * 4
        assert rows["gate", "BF16"]["count"] == 2


def test_two_authorities_need_two_commands(model: Path, tmp_path: Path) -> None:
    wish: tuple[object, ...] = (
        "build",
        model,
        "-q",
        "q8_0",
        "-q",
        "bnb-nf4",
        "-o",
        tmp_path / "out",
    )
    assert "in two commands" in refusal(quantkit(*wish))
