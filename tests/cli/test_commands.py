"""Every command as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.planning.quants import all_quants, folder_quants
from tests.cli.command import quantkit, refusal
from tests.measured import measure
from tests.random_checkpoints import random_checkpoint

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
HEAVY = {"torch", "transformers", "llama_cpp", "gguf", "sentencepiece", "tokenizers", "numpy"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-mistral as q4_k_m and q8_0, smoke-tested."""
    out = tmp_path_factory.mktemp("built")
    outcome = quantkit(
        "build", CHECKPOINTS / "tiny-mistral", "-q", "q4_k_m", "-q", "Q8_0", "-o", out
    )
    assert outcome.code in (0, None), outcome
    assert outcome.out.count("passed") == 2
    return out


def test_help_names_every_command_and_starts_at_once() -> None:
    python = [sys.executable]
    code = f"import sys, quantkit.cli.app; sys.exit(bool({HEAVY!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    shown, numpy = (
        measure([*python, "-m", "quantkit", "--help"]),
        measure([*python, "-c", "import numpy"]),
    )
    # Processor time, beside that of something well known on the same machine. Measured: twice.
    assert shown.cpu_seconds < 10 * numpy.cpu_seconds
    for command in ("build", "export", "quants", "inspect", "smoke", "doctor"):
        assert command in shown.output
        assert quantkit(command, "--help").code == 0


def test_quants_lists_every_quant() -> None:
    rows = json.loads(quantkit("quants", "--json").out)["quants"]
    assert [row["name"] for row in rows] == [*all_quants(), *folder_quants()]
    by_name = {row["name"]: row for row in rows}
    assert [n for n, row in by_name.items() if "ladder" in row["groups"]] == [
        "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k",
    ]  # fmt: skip
    assert by_name["iq2_xxs"]["needs_imatrix"]
    assert not by_name["q2_k"]["needs_imatrix"]
    size = by_name["q4_k_m"]["models"]["Mixtral-8x22B"]["tensor_bytes"]
    assert round(size / 2**20) == 81_626  # as llama-quantize --dry-run prints
    shown = quantkit("quants").out
    assert "In the group ladder: f16, q8_0, q6_k, q5_k_m, q4_k_m, q3_k_m, q2_k\n" in shown
    assert "In the group all: every GGUF quant but mxfp4_moe, q2_0, " in shown


def test_a_dry_run_predicts_every_byte(built: Path, tmp_path: Path) -> None:
    plan = json.loads(
        quantkit(
            "build", CHECKPOINTS / "tiny-mistral", "-q", "q4_k_m", "-q", "q8_0",
            "-o", tmp_path / "none", "--dry-run", "--json",
        ).out
    )  # fmt: skip
    for artifact in plan["artifacts"]:
        for file in artifact["files"]:
            assert (built / file["name"]).stat().st_size == file["bytes"]
            end = file["tensors"][-1]["offset"] + file["tensors"][-1]["bytes"]
            assert 0 <= file["bytes"] - end < 32
    assert not (tmp_path / "none").exists()


def test_a_build_leaves_artifacts_and_a_manifest(built: Path) -> None:
    manifest = json.loads((built / "quantkit.json").read_text())
    names = {file["name"] for a in manifest["artifacts"].values() for file in a["files"]}
    assert {path.name for path in built.iterdir()} == names | {"quantkit.json"}
    for entry in manifest["artifacts"].values():
        assert entry["smoke"]["ok"]
        assert len(entry["source"]["weights"]) == 2


def test_a_build_answers_in_json(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", "mixtral", num_hidden_layers=1)
    outcome = quantkit(
        "build", folder, "-q", "q8_0", "-o", tmp_path / "out", "--no-smoke", "--json"
    )
    entry = next(iter(json.loads(outcome.out)["artifacts"].values()))
    assert entry["quant"] == "q8_0"
    assert "smoke" not in entry


def test_inspect_reads_both_kinds(built: Path) -> None:
    checkpoint = json.loads(quantkit("inspect", CHECKPOINTS / "tiny-mixtral", "--json").out)
    assert checkpoint["family"] == "mixtral"
    roles = {row["role"]: row for row in checkpoint["tensors"]}
    assert roles["ffn_down_exps"]["count"] == 4 * 8
    gguf = json.loads(quantkit("inspect", min(built.glob("*Q4_K_M.gguf")), "--json").out)
    assert gguf["metadata"]["general.name"] == "Tiny Mistral"
    encodings = {row["encoding"] for row in gguf["tensors"]}
    assert encodings == {"F32", "Q4_K", "Q6_K"}
    assert "attn_q" in quantkit("inspect", min(built.glob("*Q8_0.gguf"))).out


def test_smoke_passes_what_was_built(built: Path) -> None:
    outcome = quantkit("smoke", min(built.glob("*Q8_0.gguf")))
    assert outcome.code in (0, None)
    assert "passed" in outcome.out
    assert "sha256 as built" in outcome.out


def test_smoke_fails_a_flipped_bit_with_one_sentence(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in built.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    damaged = min(copy.glob("*Q8_0.gguf"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert "not as it was built" in refusal(quantkit("smoke", damaged), code=1)


def test_doctor_knows_this_machine() -> None:
    findings = json.loads(quantkit("doctor", "--json").out)["findings"]
    assert {"llama-cpp-python", "AMX trap", "memory", "disk"} <= {f["name"] for f in findings}
    assert quantkit("doctor").code in (0, None)


def test_version() -> None:
    assert quantkit("--version").out.startswith("quantkit 0.")
