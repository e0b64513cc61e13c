"""``quantkit densify`` and ``quantkit import`` as commands."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from quantkit.building.rewrite import look_ahead
from quantkit.calibration.journaled import Run
from quantkit.checkpoint.densified import densified
from tests.calibration.runs import opened
from tests.cli.command import quantkit, refusal
from tests.hub_server import HubServer, serve
from tests.random_checkpoints import config_of, random_tensors, write_tokenizer
from tests.raw_releases import raw_release
from tests.safetensors_writer import write_checkpoint

MIXTRAL = Path(__file__).parents[1] / "checkpoints" / "tiny-mixtral"
MISTRAL = MIXTRAL.with_name("tiny-mistral")


def test_card_and_report(tmp_path: Path) -> None:
    out = tmp_path / "dense"
    outcome = quantkit("densify", MIXTRAL, "-o", out, "--expert", 6, "--json")
    assert outcome.code in (None, 0), outcome
    assert json.loads(outcome.out)["architecture"] == "MistralForCausalLM"
    _, front, body = (out / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["base_model"] == ["tiny-mixtral"]
    assert card["base_model_relation"] == "merge"
    assert card["license"] == "apache-2.0"
    assert "keeps expert 6 alone" in body
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


@pytest.mark.native  # it needs no tools, but time
def test_every_gguf_quant_of_one_expert_runs(tmp_path: Path) -> None:
    assert quantkit("densify", MIXTRAL, "-o", tmp_path / "dense", "--expert", 7).code in (None, 0)
    outcome = quantkit(
        "build", tmp_path / "dense", "-q", "gguf-all", "-o", tmp_path / "q", "--json"
    )
    assert outcome.code in (None, 0), outcome
    artifacts = json.loads(outcome.out)["artifacts"]
    assert len(artifacts) >= 6
    assert all(entry["smoke"]["ok"] for entry in artifacts.values())


def test_import_needs_no_torch(tmp_path: Path) -> None:
    raw = raw_release(MISTRAL, tmp_path / "raw", "pth-split")
    program = (
        "import sys; from tests.cli.command import quantkit; "
        f"o = quantkit('import', {str(raw)!r}, '-o', {str(tmp_path / 'hf')!r}); "
        "assert o.code in (None, 0), o; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / "hf" / "model.safetensors").is_file()


def test_experts_come_from_the_hub_by_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import close_session, constants

    with serve(HubServer(MIXTRAL)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        name = "someone/Model"
        outcome = quantkit("densify", name, "-o", tmp_path / "hub", "--expert", 1)
        close_session()
    assert outcome.code in (None, 0), outcome
    assert quantkit("densify", MIXTRAL, "-o", tmp_path / "local", "--expert", 1).code in (None, 0)
    found, expected = (tmp_path / n / "model.safetensors" for n in ("hub", "local"))
    assert found.read_bytes() == expected.read_bytes()
    assert name in (tmp_path / "hub" / "README.md").read_text()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("merge", ["routed", "fit"])
def test_a_disk_must_hold_what_a_merge_keeps_beside_the_result(
    merge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations between two layers, twice, what is fitted in float32, and the dense model."""
    source, model = opened(MIXTRAL)
    dense = densified(source, model, [[1.0] * 8] * 4)
    result = look_ahead(*dense, tmp_path / "out", max_memory=2**30, shard_size=None)
    kept = 2 * (2 * 64 * model.hparams.hidden_size * 4)
    if merge == "fit":
        kept += 4 * 3 * model.hparams.hidden_size * model.hparams.intermediate_size * 4
    free = result + kept - 1

    def usage(_folder: object) -> SimpleNamespace:
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(Run, "execute", None)  # it is not begun
    options = ("--merge", merge, "--chunks", 2, "--context", 64)
    outcome = quantkit("densify", MIXTRAL, "-o", tmp_path / "out", *options)
    assert outcome.code == 2
    assert f"({result + kept} bytes)" in outcome.err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--expert N"),
        (["--expert", 1, "--merge", "linear"], "--expert N"),
        (["--expert", 8], "from 0 to 7"),
        (["--expert", 1, "--weights", "1,1"], "--weights goes with"),
        (["--merge", "linear", "--weights", "1,x"], "numbers with commas"),
        (["--merge", "linear", "--weights", "1,1"], "2 weights for 8 experts"),
    ],
)
def test_bad_requests(arguments: list[object], reason: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert reason in refusal(quantkit("densify", MIXTRAL, "-o", out, *arguments))
    assert not list(tmp_path.iterdir())


def test_a_mean_beyond_its_dtype_is_said_so(tmp_path: Path) -> None:
    """Finite weights whose sum is not: the checkpoint holds no NaN, and is not blamed for one."""
    config = config_of("mixtral", num_hidden_layers=1, num_local_experts=2)
    tensors = random_tensors(config, "F16")
    huge = "model.layers.0.block_sparse_moe.experts.{}.w1.weight"
    for expert in (0, 1):
        tensors[huge.format(expert)] = np.full((512, 256), 60_000 * (-1) ** expert, np.float16)
    write_checkpoint(tmp_path / "model", tensors, config)
    write_tokenizer(tmp_path / "model")
    wish = ("densify", tmp_path / "model", "-o", tmp_path / "out", "--merge", "linear")
    outcome = quantkit(*wish, "--weights", "2,-1")  # 180,000
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1] == (
        "Error: The mean of the experts is beyond what F16 holds in "
        "'model.layers.0.mlp.gate_proj.weight'; give other weights, or take one expert "
        "with --expert."
    )
    assert not (tmp_path / "out").exists()


def test_bad_sources(tmp_path: Path) -> None:
    out = tmp_path / "out"
    linear = ["-o", out, "--merge", "linear"]
    assert "dense already" in refusal(quantkit("densify", MISTRAL, *linear))
    assert "does not exist" in refusal(quantkit("densify", "./nowhere", *linear))
    assert "has no params.json" in refusal(quantkit("import", MIXTRAL, "-o", out))
    assert not list(tmp_path.iterdir())
