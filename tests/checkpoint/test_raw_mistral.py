"""Raw Mistral releases: the same files come of them as of the Hugging Face checkpoint."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.building.rewrite import rewrite
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.open import open_checkpoint
from quantkit.checkpoint.rows import open_rows
from quantkit.core.errors import CheckpointError, QuantkitError, TokenizerError
from quantkit.families import find_family
from quantkit.families.model import Decoder
from tests.building.builds import build
from tests.raw_releases import LAYOUTS, raw_release

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
MIXTRAL = CHECKPOINTS / "tiny-mixtral"
MISTRAL = CHECKPOINTS / "tiny-mistral"
QUANTS = ("bf16", "q4_k_m")


def sums(checkpoint: Path, out: Path) -> dict[str, str]:
    return {
        artifact.path.name: hashlib.sha256(artifact.path.read_bytes()).hexdigest()
        for artifact in build(checkpoint, out, *QUANTS)
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return sums(MIXTRAL, tmp_path_factory.mktemp("expected"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_builds_the_same_files_and_imports_the_same_tensors(
    layout: str, tmp_path: Path, expected: dict[str, str]
) -> None:
    raw = raw_release(MIXTRAL, tmp_path / "tiny-mixtral", layout, files=4)
    assert sums(raw, tmp_path / "out") == expected
    imported = tmp_path / "imported"
    rewrite(*opened(raw), imported, recipe={}, jobs=2, max_memory=2**28, shard_size=4 * 10**6)
    assert len(list(imported.glob("*.safetensors"))) > 1
    assert_same_tensors(open_checkpoint(imported), open_checkpoint(MIXTRAL))
    assert json.loads((imported / "tokenizer.json").read_text()) == json.loads(
        (MIXTRAL / "tokenizer.json").read_text()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imported", "out", "tiny-mixtral"]


def test_a_dense_model_is_imported(tmp_path: Path) -> None:
    raw = raw_release(MISTRAL, tmp_path / "raw", "pth-split", files=2)
    imported = tmp_path / "imported"
    rewrite(*opened(raw), imported, recipe={}, jobs=1, max_memory=2**28)
    assert_same_tensors(open_checkpoint(imported), open_checkpoint(MISTRAL))


def test_numbered_tokenizers(tmp_path: Path) -> None:
    raw = raw_release(MISTRAL, tmp_path / "raw", "safetensors")
    model = (raw / "tokenizer.model").rename(raw / "tokenizer.model.v3")
    (raw / "tokenizer.model.v1").write_bytes(b"an old one")
    folder = open_checkpoint(raw).path
    assert (folder / "tokenizer.model").read_bytes() == model.read_bytes()
    shutil.rmtree(raw)
    raw = raw_release(MISTRAL, raw, "safetensors")
    (raw / "tokenizer.model").unlink()
    with pytest.raises(TokenizerError, match=r"neither tekken\.json nor tokenizer\.model"):
        open_checkpoint(raw)
    (raw / "tekken.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tekken\.json is damaged"):
        open_checkpoint(raw)


def test_a_folder_with_both_is_a_hugging_face_checkpoint(tmp_path: Path) -> None:
    shutil.copytree(MISTRAL, tmp_path / "both")
    (tmp_path / "both" / "params.json").write_text("{}")
    (tmp_path / "both" / "consolidated.safetensors").write_bytes(b"")
    assert open_checkpoint(tmp_path / "both").read_rows is None


def test_what_params_leave_unsaid(tmp_path: Path) -> None:
    raw = raw_release(MISTRAL, tmp_path / "raw", "safetensors")
    params = json.loads((raw / "params.json").read_text())
    del params["rope_theta"], params["max_position_embeddings"]
    (raw / "params.json").write_text(json.dumps(params))
    config = open_checkpoint(raw).config
    assert (config["rope_theta"], config["max_position_embeddings"]) == (1e6, 32768)
    (raw / "params.json").write_text(json.dumps(params | {"sliding_window": 4096}))
    assert open_checkpoint(raw).config["rope_theta"] == 1e4


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"hidden_dim": None}, "Meta's own release of a Llama"),
        ({"hidden_dim": 256}, "asks for 256x256"),
        ({"n_layers": 3}, "does not belong"),
        ({"n_layers": 5}, "lacks 'layers.4"),
        ({"moe": [1]}, "moe is not an object"),
    ],
)
def test_params_that_do_not_fit(tmp_path: Path, fault: dict[str, object], reason: str) -> None:
    raw = raw_release(MISTRAL, tmp_path / "raw", "safetensors")
    params = json.loads((raw / "params.json").read_text()) | fault
    (raw / "params.json").write_text(json.dumps(params))
    with pytest.raises(QuantkitError, match=reason):
        open_checkpoint(raw)


YARN = {
    "factor": 4.0, "original_max_position_embeddings": 128, "alpha": 1, "beta": 32,
    "apply_scale": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"llama_4_scaling": {"beta": 0.1}}, "llama_4_scaling = "),
        ({"vision_encoder": {"hidden_size": 8}}, "vision_encoder = "),
        ({"causal": False}, "causal = False"),
        ({"use_biases": True}, "use_biases = True"),
        (
            {"moe": {"num_experts": 8, "num_experts_per_tok": 2, "routed_scale": 2.5}},
            "routed_scale",
        ),
        ({"moe": {"num_experts": 8, "strange": 1}}, "moe has strange"),
        ({"yarn": {**YARN, "gamma": 1}}, "yarn must have alpha, apply_scale, beta"),
        ({"yarn": {"factor": 4}}, "yarn must have"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ],
)
def test_params_that_change_the_arithmetic_are_refused(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    raw = raw_release(MISTRAL, tmp_path / "raw", "safetensors")
    params = json.loads((raw / "params.json").read_text())
    (raw / "params.json").write_text(json.dumps(params | change))
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(raw)


def test_yarn_and_keys_unheard_of(tmp_path: Path) -> None:
    raw = raw_release(MISTRAL, tmp_path / "raw", "safetensors")
    params = json.loads((raw / "params.json").read_text()) | {"lora": None, "max_batch_size": 3}
    (raw / "params.json").write_text(json.dumps(params | {"yarn": YARN, "unheard_of": 3}))
    _, model = opened(raw)
    rope = model.hparams.rope
    assert (rope.form, rope.factor, rope.magnitude) == ("yarn", 4.0, 1.0)
    [remark] = model.remarks
    assert "unheard_of" in remark
    (raw / "params.json").write_text(json.dumps(params | {"yarn": {**YARN, "apply_scale": True}}))
    assert opened(raw)[1].hparams.rope.magnitude == pytest.approx(1.1386294)


@pytest.mark.parametrize("key", ["head_dim", "n_heads", "dim"])
@pytest.mark.parametrize("value", [[64], "64", {"a": 1}])
def test_a_size_that_is_no_number_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    raw = raw_release(MISTRAL, tmp_path / "raw", "safetensors")
    params = json.loads((raw / "params.json").read_text())
    (raw / "params.json").write_text(json.dumps(params | {"head_dim": 64, key: value}))
    with pytest.raises(CheckpointError):
        opened(raw)


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    for layout, reason in (("pth-split", "consolidated file is missing"), ("pth", "lacks")):
        raw = raw_release(MIXTRAL, tmp_path / layout, layout, files=4)
        (raw / "consolidated.02.pth").unlink()
        with pytest.raises(CheckpointError, match=reason):
            open_checkpoint(raw)


def opened(folder: Path) -> tuple[Checkpoint, Decoder]:
    checkpoint = open_checkpoint(folder)
    model = find_family(checkpoint.config).describe(checkpoint.config, checkpoint.tensors)
    return checkpoint, model


def assert_same_tensors(found: Checkpoint, expected: Checkpoint) -> None:
    read_found, read_expected = open_rows(found), open_rows(expected)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        rows = tensor.n_bytes // tensor.row_bytes
        assert found.tensors[name].shape == tensor.shape
        np.testing.assert_array_equal(read_found(name, 0, rows), read_expected(name, 0, rows))
