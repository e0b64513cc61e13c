"""What the converter makes of stored forms is what their parts are worth, by our own reading."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.architectures import unpack
from tests.architectures.dry_run import dry_run
from tests.architectures.gguf_tensors import Tensors
from tests.architectures.ggufs import (
    convert,
    small_checkpoints,
    small_ggufs,
    stored_checkpoints,
    stored_ggufs,
)
from tests.architectures.stored import STORED
from tests.architectures.unpack import Weight
from tests.native_tools import ToolError
from tests.safetensors_writer import to_bf16

pytestmark = pytest.mark.search  # of the tests' own material, by hand

CONVERTED = [name for name, stored in STORED.items() if stored.refused is None]
QUANTIZED = [
    name for name in CONVERTED if STORED[name].quantization or STORED[name].older_quantization
]
# Parts of GGUF names for parts of published ones. What is not here the converter takes apart,
# joins or puts into another order; that is not what these tests are about.
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "ffn.experts.w1": "ffn_gate_exps",
    "ffn.experts.w2": "ffn_down_exps",
    "ffn.experts.w3": "ffn_up_exps",
    "block_sparse_moe.experts.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.w2": "ffn_down_exps",
    "block_sparse_moe.experts.w3": "ffn_up_exps",
}
# Llama's rows of queries and keys are put into another order, and so are Qwen3.5's heads;
# DeepSeek's layer of prediction is left out; a matrix of its attention is cut in two, and what is
# in eight bits in its fourth version becomes Q8_0; MiMo's queries, keys and values are sorted.
ELSEWHERE = {
    "mimo2": r"qkv_proj",
    "deepseek4": r"attn|shared_experts",
    "llama": r"[qk]_proj",
    "qwen35": r"linear_attn",
    "deepseek2": r"layers\.2\.|kv_b_proj",
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_values_are_those_of_the_parts(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoint = stored_checkpoints(tmp_path_factory)[name]
    wide = Tensors(stored_ggufs(tmp_path_factory, CONVERTED, "f32")[name])
    half = Tensors(stored_ggufs(tmp_path_factory, CONVERTED)[name])

    expected = by_gguf_name(name, unpack.weights(checkpoint))

    assert len(expected) >= 3
    for tensor, weights in expected.items():
        values = np.squeeze(np.stack([weight.values for weight in weights]))
        if weights[0].form == "float":
            assert wide.kind(tensor) == "F32", tensor
            np.testing.assert_array_equal(wide.values(tensor), values, tensor)
            if half.kind(tensor) != "F32":
                rounded = np.frombuffer(to_bf16(values).data, np.uint16).reshape(values.shape)
                np.testing.assert_array_equal(half.bits(tensor), rounded, tensor)
        else:
            assert wide.kind(tensor) == half.kind(tensor) == weights[0].form.upper(), tensor
            np.testing.assert_array_equal(wide.values(tensor), values, tensor)
            np.testing.assert_array_equal(half.values(tensor), values, tensor)
        if weights[0].form == "nvfp4":
            module = tensor.removesuffix("weight")
            scales = np.array([weight.scale for weight in weights], np.float32)
            np.testing.assert_array_equal(wide.values(f"{module}scale"), scales)
            incoming = np.array([weight.input_scale for weight in weights], np.float32)
            if (incoming != 1).any():
                np.testing.assert_array_equal(wide.values(f"{module}input_scale"), incoming)


def by_gguf_name(name: str, weights: dict[str, Weight]) -> dict[str, list[Weight]]:
    """The quantized weights of a checkpoint by the GGUF tensor that has them: experts together.

    Every one of them is there, but those that `ELSEWHERE` excuses.
    """
    found: dict[str, list[Weight]] = {}
    elsewhere = ELSEWHERE.get(STORED[name].arch)
    for published, weight in weights.items():
        if not weight.quantized or (elsewhere and re.search(elsewhere, published)):
            continue
        parts = re.fullmatch(
            r"(?:language_model\.)?(?:model\.)?layers\.(\d+)\.(.*)\.weight", published
        )
        assert parts, published
        part = PARTS[re.sub(r"experts\.\d+", "experts", parts[2])]
        found.setdefault(f"blk.{parts[1]}.{part}.weight", []).append(weight)
    return found


def test_converter_knows_each_by_its_architecture(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    ggufs = stored_ggufs(tmp_path_factory, CONVERTED)

    found = {name: Tensors(file).keys["general.architecture"] for name, file in ggufs.items()}

    assert found == {name: STORED[name].arch for name in CONVERTED}


def test_llama_quantize_takes_each(tmp_path_factory: pytest.TempPathFactory) -> None:
    ggufs = stored_ggufs(tmp_path_factory, CONVERTED)

    # The first Qwen's converter leaves out a key that llama.cpp needs.
    with pytest.raises(ToolError, match=r"qwen\.attention\.layer_norm_rms_epsilon"):
        dry_run(ggufs.pop("qwen-coded"), "Q4_K_M")
    for name, file in ggufs.items():
        kinds = dry_run(file, "Q4_K_M").values()
        assert "Q4_K" in kinds or "Q5_0" in kinds, name


@pytest.mark.parametrize("name", [name for name in CONVERTED if STORED[name].small.predictor])
def test_layer_of_prediction_comes_along(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = unpack.weights(stored_checkpoints(tmp_path_factory)[name])
    gguf = Tensors(stored_ggufs(tmp_path_factory, CONVERTED)[name])

    arch = STORED[name].arch
    joint = [name for name in source if re.search(r"eh_proj|mtp\.fc", name)]

    assert len(joint) == 1
    if arch == "deepseek2":  # the converter leaves it out
        assert f"{arch}.nextn_predict_layers" not in gguf.keys
        assert gguf.keys[f"{arch}.block_count"] == 2
        assert not [tensor for tensor in gguf.tensors if tensor.startswith("blk.2.")]
    else:
        assert gguf.keys[f"{arch}.nextn_predict_layers"] == 1
        assert gguf.keys[f"{arch}.block_count"] == 3
        written = gguf.values("blk.2.nextn.eh_proj.weight")
        np.testing.assert_array_equal(written, source[joint[0]].values)
        assert "blk.2.attn_output.weight" in gguf.tensors


PICKLED = {"qwen3-bin": "qwen3", "mixtral-bin-shards": "mixtral"}


@pytest.mark.parametrize("name", PICKLED)
def test_pickles_hold_what_safetensors_hold(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    small = small_checkpoints(tmp_path_factory, PICKLED.values())[PICKLED[name]]
    safe = Tensors(small_ggufs(tmp_path_factory, PICKLED.values())[PICKLED[name]])
    pickled = Tensors(stored_ggufs(tmp_path_factory, CONVERTED)[name])
    folder = stored_checkpoints(tmp_path_factory)[name]

    assert (small / "model.safetensors").exists()
    assert not list(folder.glob("*.safetensors"))
    assert len(list(folder.glob("pytorch_model*.bin"))) == STORED[name].n_files
    assert pickled.tensors.keys() == safe.tensors.keys()
    for tensor in safe.tensors:
        assert pickled.bits(tensor).tobytes() == safe.bits(tensor).tobytes(), tensor


def test_converter_refuses_what_it_does_not_read(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    refused = {name: stored.refused for name, stored in STORED.items() if stored.refused}
    checkpoints = stored_checkpoints(tmp_path_factory)

    with pytest.raises(AssertionError) as error:
        convert(
            {name: checkpoints[name] for name in refused},
            {name: tmp_path / f"{name}.gguf" for name in refused},
        )

    said = {name: (tmp_path / f"{name}.partial.failed").read_text() for name in refused}
    assert [name for name, reason in refused.items() if reason not in said[name]] == []
    assert all(name in str(error.value) for name in refused)
