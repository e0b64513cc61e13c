"""Whether llama.cpp computes what the checkpoint does: sound files, faulty ones, first layers."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from quantkit.building import engine
from quantkit.building.work import prepare
from quantkit.calibration.lockstep.logits import round_as
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.gguf import read_header
from quantkit.checkpoint.open import open_checkpoint
from quantkit.checkpoint.shortened import fewest_layers
from quantkit.core.errors import CompareError, NoSpaceError
from quantkit.planning.quants import find_quants
from quantkit.verification import layers, proving
from quantkit.verification.proof import Proof, describe_proof, length, prove
from quantkit.verification.proving import prove_artifact, prove_conversion
from quantkit.verification.quality import weight_faults
from tests.building.builds import build
from tests.calibration.small_models import small_model
from tests.verification.faults import FAULTS, swap_two_embeddings, with_fault

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


@pytest.fixture(scope="module")
def mixtral() -> Checkpoint:
    return open_checkpoint(CHECKPOINTS / "tiny-mixtral")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """tiny-mixtral in f32 and in q4_k_m."""
    folder = tmp_path_factory.mktemp("built")
    exact, rounded = build(CHECKPOINTS / "tiny-mixtral", folder, "f32", "q4_k_m")
    return exact.path, rounded.path


def test_a_sound_file_is_proven(mixtral: Checkpoint, built: tuple[Path, Path]) -> None:
    told: list[tuple[float, int]] = []
    proof = prove(mixtral, built[0], threads=1, report=lambda *done: told.append(done))
    assert (proof.outcome, proof.reason, proof.open) == ("proven", "", ())
    assert proof.error is not None
    assert proof.noise is not None
    assert 0 < 20 * proof.error < proof.noise < 0.01
    assert told == sorted(told)
    assert [step for step in told if step[0] % 1 == 0] == [(layer, 4) for layer in (1, 2, 3, 4)]
    assert (proof.tokens, proof.layers, proof.of_layers) == (512, 4, 4)
    assert "all 4 layers: mean KLD" in describe_proof(proof.as_numbers())


def test_faults_of_a_quantized_file_are_found(
    mixtral: Checkpoint, built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prove_artifact(mixtral, built[1], threads=1).outcome == "proven"
    # The conversion has been proven: now the file is compared with it.
    monkeypatch.setattr(proving, "prove", lambda *_args, **_more: Proof("proven"))
    for name, fault in FAULTS.items():
        faulty = with_fault(built[1], tmp_path / "faulty.gguf", fault)
        found = prove_artifact(mixtral, faulty, threads=1)
        words = "freq_base" if "rope" in name else "weights of blk"
        assert found.outcome == "wrong", name
        assert words in found.reason


def test_weights_that_the_text_does_not_use_are_compared(
    mixtral: Checkpoint, built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = tmp_path / "faulty.gguf"
    shutil.copyfile(built[0], faulty)
    embeddings = next(
        t.data for t in GGUFReader(faulty, "r+").tensors if t.name == "token_embd.weight"
    )
    # Two of the bytes that texts fall back to, which plain English never does.
    embeddings[[200, 201]] = embeddings[[201, 200]]
    embeddings.base.flush()  # type: ignore[union-attr]
    assert prove(mixtral, faulty, threads=1).outcome == "proven"
    found = prove_artifact(mixtral, faulty, threads=1)
    assert found.outcome == "wrong"
    assert "weights of token_embd.weight" in found.reason

    def full(*_how: object) -> Path:
        raise NoSpaceError("The disk is full.")

    monkeypatch.setattr(proving, "prove", lambda *_args, **_more: Proof("proven"))
    monkeypatch.setattr(proving, "build_specimen", full)
    found = prove_artifact(mixtral, faulty, threads=1)
    assert (found.outcome, len(found.open)) == ("proven", 1)
    assert found.open[0].endswith("were not compared with the checkpoint's: The disk is full")


def test_two_rows_that_are_swapped_are_found(
    mixtral: Checkpoint, built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a matrix of which all together is no further off than its rounding explains."""
    monkeypatch.setattr(proving, "prove", lambda *_args, **_more: Proof("proven"))
    faulty = with_fault(built[1], tmp_path / "faulty.gguf", swap_two_embeddings)
    errors = layers.weight_errors(faulty, built[0])
    assert weight_faults(errors) == []
    found = prove_artifact(mixtral, faulty, threads=1)
    assert found.outcome == "wrong"
    assert re.search("row 20[01] of the weights of token_embd.weight is 1..% off", found.reason)


def test_a_matrix_of_scores_that_is_the_embeddings_is_the_model(tmp_path: Path) -> None:
    """Other tools write it a second time where the model has it once."""
    tied = small_model("llama", tmp_path / "tied", tie_word_embeddings=True)
    apart = tmp_path / "apart"
    shutil.copytree(tied, apart)
    config = json.loads((apart / "config.json").read_text())
    (apart / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    tensors = load_file(apart / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, apart / "model.safetensors", {"format": "pt"})
    exact, rounded = build(apart, tmp_path / "out", "f32", "q8_0")
    assert "output.weight" in {tensor.name for tensor in read_header(rounded.path).tensors}
    checkpoint = open_checkpoint(tied)
    assert prove_artifact(checkpoint, exact.path, threads=1).outcome == "proven"
    assert prove_artifact(checkpoint, rounded.path, threads=1).outcome == "proven"
    tensors["lm_head.weight"] *= 1.1
    save_file(tensors, apart / "model.safetensors", {"format": "pt"})
    (other,) = build(apart, tmp_path / "other", "q8_0")
    found = prove_artifact(checkpoint, other.path, threads=1)
    assert "the weights of output.weight are 10% off" in found.reason


def test_of_a_large_model_the_first_layers_are_proven(
    mixtral: Checkpoint, built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "_room", lambda: built[0].stat().st_size // 2)
    proof = prove_artifact(mixtral, built[1], threads=1)
    assert (proof.outcome, proof.layers, proof.of_layers) == ("proven", 1, 4)
    assert proof.open == ("weights from layer 1 on were not compared with the checkpoint's",)
    # What belongs to no layer is compared though the layers behind are not.
    sound = layers._tensors

    def with_another(artifact: Path) -> dict[str, layers._Stored]:
        found = sound(artifact)
        return (
            found | {"rope_freqs.weight": found["output_norm.weight"]}
            if artifact == built[1]
            else found
        )

    monkeypatch.setattr(layers, "_tensors", with_another)
    monkeypatch.setattr(proving, "prove", lambda *_args, **_more: Proof("proven"))
    with pytest.raises(CompareError, match=r"rope_freqs\.weight"):
        prove_artifact(mixtral, built[1], threads=1)


def test_first_layers_of_what_the_converter_describes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of layer is among them: here a dense one before those with experts."""
    small = {"num_hidden_layers": 3, "moe_intermediate_size": 32, "intermediate_size": 128}
    folder = small_model("dots1", tmp_path / "model", **small)
    checkpoint = open_checkpoint(folder)
    monkeypatch.setattr(proving, "_room", lambda: 1)
    (artifact,) = engine.build(
        prepare(checkpoint, find_quants(["q8_0"])), tmp_path / "out", jobs=1, max_memory=2**30
    )
    proof = prove_artifact(checkpoint, artifact.path, threads=1)
    assert (proof.outcome, proof.layers, proof.of_layers) == ("proven", 2, 3), proof


def test_rounding_leaves_what_float16_cannot_hold() -> None:
    x = torch.tensor([1 / 3, 7e4, -1e9])
    assert round_as(x, torch.float16).tolist() == [x[0].half().item(), 7e4, -1e9]
    assert round_as(x, torch.bfloat16).tolist() == x.bfloat16().float().tolist()


def test_what_cannot_be_compared_is_not_proven(
    mixtral: Checkpoint,
    built: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proof = prove(mixtral, built[1])
    assert (proof.outcome, proof.error) == ("not proven", None)
    assert "rounded to Q4_K, Q5_K, Q6_K" in proof.reason
    broken = tmp_path / "broken.gguf"
    shutil.copyfile(built[0], broken)
    with broken.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\xff\xff\xff\x7f")
    assert "llama.cpp does not run broken.gguf: " in prove(mixtral, broken).reason
    monkeypatch.setitem(sys.modules, "transformers", None)
    proof = prove_conversion(mixtral, {})
    assert proof.outcome == "not proven"
    assert "transformers" in proof.reason


def test_encoders_are_not_compared(tmp_path: Path) -> None:
    proof = prove_conversion(open_checkpoint(small_model("bert", tmp_path / "model")), {})
    assert (proof.outcome, proof.error) == ("not proven", None)
    assert "tokens attend to later ones" in proof.reason


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({}, 1),
        ({"layer_types": ["a", "a", "b", "a"]}, 3),
        ({"sliding_window_pattern": 3}, 3),
        ({"full_attention_interval": 6}, 4),
        ({"decoder_sparse_step": 1}, 1),
    ],
)
def test_which_layers_are_of_each_kind(
    config: dict[str, object], layers: int, mixtral: Checkpoint
) -> None:
    assert fewest_layers(replace(mixtral, config={**mixtral.config, **config})) == layers


@pytest.mark.parametrize(
    ("config", "tokens", "unreached"),
    [
        ({}, 512, ""),
        ({"max_position_embeddings": 256}, 256, ""),
        ({"sliding_window": None, "max_position_embeddings": 32768}, 512, ""),
        ({"sliding_window": 4096, "max_position_embeddings": 32768}, 4224, ""),
        ({"sliding_window": 4096, "use_sliding_window": False}, 512, ""),
        ({"sliding_window": 32768, "max_position_embeddings": 131072}, 512, "window of 32,768"),
        ({"sliding_window": 300, "max_position_embeddings": 310}, 310, "window of 300"),
        ({"sliding_window": 512, "max_position_embeddings": 512}, 512, ""),  # is none
        ({"rope_scaling": {"type": "longrope"}}, 512, "longrope"),
        ({"rope_parameters": {"rope_type": "llama3"}}, 512, ""),
    ],
)
def test_how_many_tokens_show_all(config: dict[str, object], tokens: int, unreached: str) -> None:
    count, sentences = length(config)
    assert count == tokens
    assert len(sentences) == bool(unreached)
    assert unreached in "".join(sentences)
