"""A model's vision or audio part lies beside its files and goes with them; a model it is not."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.core.units import format_size
from quantkit.publishing.layout import find_artifacts
from quantkit.verification.subjects import artifacts_in, outline_subjects, projectors_in
from tests.cli.command import quantkit
from tests.hub_writes import HubStore
from tests.publishing.builds import Q2, Q4, REPO, SOURCE, edit_manifest

NAME = "mmproj-Tiny-Mixtral-8x2.1M-F16"
ROWS = 512


def write_projector(file: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(file, "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_tensor("v.blk.0.attn_q.weight", np.zeros((ROWS, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def seeing(folder: Path) -> Path:
    """The build with a projector, as a build leaves it."""
    file = folder / f"{NAME}.gguf"
    write_projector(file)

    def add(artifacts: dict[str, Any]) -> None:
        entry = copy.deepcopy(artifacts[Q4])
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        entry["files"] = [{"name": file.name, "bytes": file.stat().st_size, "sha256": sha256}]
        entry |= {"quant": "f16", "takes": ["vision"], "smoke": {"ok": True, "verdict": "passed"}}
        # Before the models, so that nothing goes by this order.
        others = dict(artifacts)
        artifacts.clear()
        artifacts.update({NAME: entry, **others})

    edit_manifest(folder, add)
    return folder


def test_it_is_published_with_the_models(hub: HubStore, seeing: Path) -> None:
    outcome = quantkit("publish", seeing, "--repo", REPO, "--checkpoint", SOURCE)

    assert outcome.code == 0, outcome
    order = [path for commit in hub.commits[REPO] for path in commit.paths]
    assert order[:3] == [f"{Q4}.gguf", f"{Q2}.gguf", f"{NAME}.gguf"]
    files = hub.repos[REPO]
    sums = bytes(files["SHA256SUMS"]).decode()
    assert f"  {NAME}.gguf\n" in sums
    card = bytes(files["README.md"]).decode()
    title, *_ = [line for line in card.splitlines() if line.startswith("# ")]
    assert title == "# Tiny-Mixtral-8x2.1M: GGUF"
    size = format_size((seeing / f"{NAME}.gguf").stat().st_size)
    assert f"/blob/main/{NAME}.gguf) ({size}, f16) is the model's projector" in card
    assert f"--mmproj Tiny-Mixtral-GGUF/{NAME}.gguf --image picture.jpg" in card
    assert f"- `{NAME}`: passed (loaded by llama.cpp with the model)" in card
    assert "--quant q2_k \\\n  --mmproj f16" in card
    assert card.count(f"| [`{NAME}") == 0  # it is none of the quants
    assert quantkit("verify", REPO).code == 0


def test_it_goes_with_any_quant(seeing: Path) -> None:
    names = [artifact.name for artifact in find_artifacts(seeing, REPO, quants=("q2_k",))]
    assert names == [Q2, NAME]


def test_it_is_no_model(seeing: Path) -> None:
    assert artifacts_in(seeing) == [seeing / f"{Q4}.gguf", seeing / f"{Q2}.gguf"]
    assert [subject.name for subject in outline_subjects([seeing])] == [f"{Q4}.gguf", f"{Q2}.gguf"]
    assert projectors_in(seeing) == [seeing / f"{NAME}.gguf"]
    (seeing / "quantkit.json").unlink()  # by what they say themselves
    assert {path.name for path in artifacts_in(seeing)} == {f"{Q4}.gguf", f"{Q2}.gguf"}
    assert projectors_in(seeing) == [seeing / f"{NAME}.gguf"]


def test_fit_counts_its_bytes(seeing: Path) -> None:
    outcome = quantkit("fit", seeing, "--gpu", "8GiB", "--ram", "8GiB", "--json")
    rows = json.loads(outcome.out)["quants"]
    assert [row["quant"] for row in rows] == ["q4_k_m", "q2_k"]
    for row in rows:
        [part] = [p for p in row["memory"] if p["part"] == "vision/audio projector"]
        assert part == {
            "part": "vision/audio projector",
            "device": "GPU 0",
            "bytes": ROWS * 64 * 2,
            "label": "exact",
        }


def test_inspect_says_what_it_takes(seeing: Path) -> None:
    facts = json.loads(quantkit("inspect", seeing / f"{NAME}.gguf", "--json").out)
    assert facts["takes"] == ["vision"]
    assert [row["role"] for row in facts["tensors"]] == ["v.attn_q"]
    shown = quantkit("inspect", seeing / f"{NAME}.gguf").out
    assert "vision, as the projector of a model (llama.cpp's --mmproj)" in shown


def test_smoke_takes_no_tokens_of_it(seeing: Path) -> None:
    outcome = quantkit("smoke", seeing / f"{NAME}.gguf", "--checkpoint", SOURCE)
    assert outcome.code == 2
    assert "is the projector of a model, which gives no tokens" in outcome.err
    # These bytes are no vision part, and llama.cpp says so.
    outcome = quantkit("smoke", seeing / f"{NAME}.gguf")
    assert outcome.code == 1
    assert "llama.cpp does not load it: " in outcome.err
