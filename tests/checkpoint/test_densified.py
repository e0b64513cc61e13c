"""Dense models made of a mixture: one expert's bytes, or the mean of all."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from quantkit.building.rewrite import rewrite
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.densified import dense_config, densified
from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.errors import CheckpointError, OutputError, PlanError, WeightsError
from quantkit.encodings.merge import narrow, weighted_mean
from quantkit.families import find_family
from quantkit.families.model import Decoder
from tests import mergekit
from tests.random_checkpoints import (
    config_of,
    fuse_experts,
    random_checkpoint,
    random_tensors,
    write_tokenizer,
)
from tests.raw_releases import raw_release
from tests.safetensors_writer import write_checkpoint

MIXTRAL = Path(__file__).parents[1] / "checkpoints" / "tiny-mixtral"
PARTS = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
LAYERS, EXPERTS = 4, 8


def opened(folder: Path) -> tuple[Checkpoint, Decoder]:
    checkpoint = open_checkpoint(folder)
    model = find_family(checkpoint.config).describe(checkpoint.config, checkpoint.tensors)
    return checkpoint, model


def densify(source: Path, weights: list[float], out: Path, **options: Any) -> Path:
    checkpoint, model = opened(source)
    layers = model.hparams.num_hidden_layers
    rewrite(
        *densified(checkpoint, model, [weights] * layers),
        out,
        recipe={"weights": weights},
        jobs=2,
        max_memory=2**28,
        **options,
    )
    return out


def only(expert: int) -> list[float]:
    return [float(number == expert) for number in range(EXPERTS)]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def test_one_expert_keeps_every_byte(tmp_path: Path) -> None:
    dense = densify(MIXTRAL, only(6), tmp_path / "dense", shard_size=2 * 10**6)
    assert len(list(dense.glob("*.safetensors"))) > 1
    found, source = tensors_of(dense), tensors_of(MIXTRAL)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for part, theirs in PARTS.items():
            mine = found.pop(f"{at}.mlp.{part}.weight")
            expert = source[f"{at}.block_sparse_moe.experts.6.{theirs}.weight"]
            assert torch.equal(mine.view(torch.int16), expert.view(torch.int16))
    rest = {name: value for name, value in source.items() if "block_sparse_moe" not in name}
    assert found.keys() == rest.keys()
    for name, value in rest.items():
        assert torch.equal(found[name].view(torch.int16), value.view(torch.int16))
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        assert (dense / name).read_bytes() == (MIXTRAL / name).read_bytes()


def test_transformers_loads_it_as_a_mistral(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    dense = densify(MIXTRAL, only(2), tmp_path / "dense")
    model, report = AutoModelForCausalLM.from_pretrained(dense, output_loading_info=True)
    assert type(model).__name__ == "MistralForCausalLM"
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    config = json.loads((MIXTRAL / "config.json").read_text())
    assert model.config.rms_norm_eps == config["rms_norm_eps"]
    assert model.config.sliding_window is None
    assert model.config.rope_parameters["rope_theta"] == config["rope_theta"]


@pytest.mark.parametrize("layout", ["fused", "raw"])
def test_every_layout_gives_the_same(layout: str, tmp_path: Path) -> None:
    plain = random_checkpoint(tmp_path / "plain", "mixtral")
    other = tmp_path / "other"
    if layout == "raw":
        raw_release(plain, other, "pth-split-stacked", files=4)
    else:
        config = config_of("mixtral")
        write_checkpoint(other, fuse_experts(random_tensors(config), EXPERTS), config)
        write_tokenizer(other)
    for name, weights in (("one", only(3)), ("all", [1, 2, 0, 1, 1, 0.5, 1, 1])):
        expected = tensors_of(densify(plain, weights, tmp_path / f"plain-{name}"))
        found = tensors_of(densify(other, weights, tmp_path / f"other-{name}"))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_the_mean_is_rounded_once(dtype: str) -> None:
    rng = np.random.default_rng(1)
    kind = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
    parts = [torch.from_numpy(rng.standard_normal(1000)).to(kind) for _ in range(3)]
    weights = [1.0, 2.5, -0.5]
    raws = [part.view(torch.uint8).numpy() for part in parts]
    found = torch.from_numpy(weighted_mean(raws, weights, dtype)).view(kind)
    exact = sum(part.double() * weight for part, weight in zip(parts, weights, strict=True)) / 3
    assert torch.equal(found, exact.float().to(kind)) or dtype == "F32"
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=1e-6)


def test_rounding_is_torchs() -> None:
    bits: NDArray[np.uint32] = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32)
    bits[:4] = 0x7F7FFFFF, 0xFF7F8000, 0x7F800000, 0x7FFFFFFF  # overflow, infinity, NaN
    values = bits.view(np.float32)
    for dtype, kind in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        mine = torch.from_numpy(narrow(values.copy(), dtype)).view(kind).float()
        theirs = torch.from_numpy(values).to(kind).float()
        assert torch.equal(mine.isnan(), theirs.isnan())
        assert torch.equal(mine.nan_to_num(0), theirs.nan_to_num(0))


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    checkpoint, model = opened(MIXTRAL)
    for weights, reason in (
        ([1.0] * 7, "7 weights for 8 experts"),
        ([1.0, -1.0] * 4, "do not add up to 0"),
        ([float("nan")] * 8, "do not add up to 0"),
    ):
        with pytest.raises(PlanError, match=reason):
            densified(checkpoint, model, [weights] * LAYERS)
    dense = opened(MIXTRAL.with_name("tiny-mistral"))
    with pytest.raises(CheckpointError, match="dense already"):
        densified(*dense, [[1.0]] * LAYERS)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(OutputError, match="already exists"):
        densify(MIXTRAL, only(0), tmp_path / "taken")


def test_a_failure_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    config = config_of("mixtral")
    tensors = random_tensors(config)
    name = "model.layers.1.block_sparse_moe.experts.5.w1.weight"
    dtype, shape, data = tensors[name]
    tensors[name] = (dtype, shape, data[:100] + b"\xc0\x7f" + data[102:])
    write_checkpoint(tmp_path / "source", tensors, config)
    write_tokenizer(tmp_path / "source")
    with pytest.raises(WeightsError, match="NaN"):
        densify(tmp_path / "source", [1.0] * EXPERTS, tmp_path / "dense")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# Of the merges below, which mergekit makes alike. `pytest -m readers` compares them.
UNEVEN = [1.0, 2.0, 0.5, 1.0, 3.0, 0.25, 1.5, 0.7]
MERGES = {
    "even": ([1.0] * EXPERTS, "58bb89cef0bd3055639bf6a42510d7aa310197189468f468106a2f1c7b15a3f1"),
    "uneven": (UNEVEN, "3cef7bff860e49c824d163880ef374bb5358709972961c8cc8094ee37ca005fd"),
}


@pytest.mark.parametrize("kind", MERGES)
def test_linear_is_what_mergekit_was_compared_with(kind: str, tmp_path: Path) -> None:
    weights, expected = MERGES[kind]
    digest = hashlib.sha256()
    for name, value in sorted(tensors_of(densify(MIXTRAL, weights, tmp_path / "mine")).items()):
        digest.update(name.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    assert digest.hexdigest() == expected


@pytest.mark.readers
@pytest.mark.parametrize("kind", MERGES)
def test_linear_is_mergekits(kind: str, tmp_path: Path) -> None:
    models = [densify(MIXTRAL, only(e), tmp_path / f"expert-{e}") for e in range(EXPERTS)]
    weights, _ = MERGES[kind]
    mine = tensors_of(densify(MIXTRAL, weights, tmp_path / "mine"))
    out = tmp_path / "mergekit"
    mergekit.linear(models, weights, out, dtype="bfloat16", out_dtype="bfloat16")
    theirs = tensors_of(out)
    assert theirs.keys() == mine.keys()
    steps = {name: distance(theirs[name], value) for name, value in mine.items()}
    differing = sum(int(step.count_nonzero()) for step in steps.values())
    if kind == "even":
        assert differing == 0
        return
    # mergekit's addcmul fuses product and sum where the processor can; so a float32 sum in many
    # thousands falls on the other side of a rounding to bfloat16. Where summands cancel, what a
    # float32 sum of them can be off by is more than a step of the result.
    for name, step in steps.items():
        error = (theirs[name].double() - mine[name].double()).abs()
        parts = [tensors_of(model)[name].double().abs() for model in models]
        total = sum(w * part for w, part in zip(weights, parts, strict=True))
        assert ((step <= 1) | (error <= 2.0**-22 * total / sum(weights))).all()
    assert differing < 1e-3 * sum(step.numel() for step in steps.values())


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How many bfloat16 values lie between each pair."""

    def ordered(x: torch.Tensor) -> torch.Tensor:
        bits = x.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(a) - ordered(b)).abs()


def test_a_dense_config_rotates_as_the_mixture_does() -> None:
    """Where nobody says a base, the two architectures assume different ones."""
    for rope in (
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {"rope_theta": 5e5}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 5e5},
    ):
        mixture = config_of("mixtral", rope_theta=None) | rope
        dense = dense_config(mixture)
        ropes = [find_family(c).describe(c, ()).hparams.rope for c in (mixture, dense)]
        assert ropes[0] == ropes[1]
