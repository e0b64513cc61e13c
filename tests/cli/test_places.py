"""Commands take what quantkit leaves: folders of shards, for transformers, of a whole build."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quantkit.publishing.verify import verify
from tests.building.builds import build
from tests.cli.command import quantkit, refusal
from tests.parity.cases import TRAINED

MISTRAL = TRAINED / "tiny-mistral"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("places") / "built"
    build(MISTRAL, out, "f16", "q4_k_m", "bnb-nf4", check=None)
    return out


def bnb(folder: Path) -> Path:
    return folder / "Tiny-Mistral-2.9M-bnb-nf4"


# --- smoke -----------------------------------------------------------------------------------


def test_a_folder_for_transformers_is_run_by_way_of_an_export(built: Path) -> None:
    before = set(built.iterdir())
    outcome = quantkit("smoke", bnb(built))
    assert set(built.iterdir()) == before
    assert outcome.code in (0, None), outcome
    assert outcome.out.startswith("passed: Tiny-Mistral-2.9M-bnb-nf4 (sha256 as built, ")


def test_a_folder_that_was_changed_is_told_before_it_is_run(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "built"
    shutil.copytree(built, copy)
    config = bnb(copy) / "config.json"
    config.write_text(config.read_text() + " ")
    sentence = refusal(quantkit("smoke", bnb(copy)), 1)
    assert "is not as it was built: config.json" in sentence


def test_a_folder_of_shards_is_run(tmp_path: Path) -> None:
    command = ("build", MISTRAL, "-q", "q8_0", "--shard-size", "1MB", "--no-smoke", "-o", tmp_path)
    assert quantkit(*command).code in (0, None)
    [folder] = [path for path in tmp_path.iterdir() if path.is_dir()]
    for place in (folder, tmp_path):
        outcome = quantkit("smoke", place, "--json")
        assert outcome.code in (0, None), outcome
        assert json.loads(outcome.out)["ok"]


def test_of_several_artifacts_one_is_to_be_given(built: Path, tmp_path: Path) -> None:
    sentence = refusal(quantkit("smoke", built))
    assert "several artifacts; give one of Tiny-Mistral-2.9M-F16.gguf, " in sentence
    assert "no artifact" in refusal(quantkit("smoke", tmp_path))


# --- inspect -----------------------------------------------------------------------------------


def inspected(place: object) -> dict[str, Any]:
    outcome = quantkit("inspect", place, "--json")
    assert outcome.code in (0, None), outcome
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_a_builds_folder_is_its_artifacts(built: Path) -> None:
    found = inspected(built)
    assert found["kind"] == "artifacts"
    by_name = {artifact["name"]: artifact for artifact in found["artifacts"]}
    assert by_name.keys() == {path.name for path in built.iterdir()} - {"quantkit.json"}
    for name, artifact in by_name.items():
        whole = inspected(built / name)
        assert artifact["parameters"] == whole["parameters"] == 2_885_888
        assert artifact["bytes"] == whole["bytes"]
    text = quantkit("inspect", built).out
    assert all(name in text for name in by_name)


def test_a_name_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(quantkit("inspect", tmp_path / "nothing"))
    sentence = refusal(quantkit("inspect", "https://example.org/model"))
    assert "not the address of a model on huggingface.co" in sentence


# --- verify ------------------------------------------------------------------------------------


def test_what_quantkit_leaves_beside_artifacts_is_no_stranger(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "built"
    shutil.copytree(built, copy)
    some = next(built.glob("*F16.gguf"))
    (copy / ".quantkit-reference").mkdir()
    for name in (".quantkit-reference/reference.gguf", "imatrix.gguf", "compare.json"):
        shutil.copyfile(some, copy / name)
    assert verify(str(copy)).unlisted == ()
    for name in ("stranger.gguf", "elsewhere/imatrix.gguf"):
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(some, copy / name)
    assert verify(str(copy)).unlisted == ("elsewhere/imatrix.gguf", "stranger.gguf")
