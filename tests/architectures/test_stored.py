"""What the converter makes of stored forms is what their parts are worth, by our own reading."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.checkpoint.gguf import Header, read_header
from tests.architectures import unpack
from tests.architectures.ggufs import stored_checkpoints, stored_ggufs
from tests.architectures.stored import STORED
from tests.architectures.unpack import Weight
from tests.safetensors_writer import to_bf16

pytestmark = pytest.mark.native

Array = NDArray[Any]
E2M1 = np.array(unpack.E2M1, np.float32)
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
    "block_sparse_moe.experts.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.w2": "ffn_down_exps",
    "block_sparse_moe.experts.w3": "ffn_up_exps",
}
# Llama's rows of queries and keys are put into another order, and so are Qwen3.5's heads;
# DeepSeek's layer of prediction is left out; a matrix of its attention is cut in two.
ELSEWHERE = {
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

    assert len(expected) >= 4
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
        parts = re.fullmatch(r"model\.layers\.(\d+)\.(.*)\.weight", published)
        assert parts, published
        part = PARTS[re.sub(r"experts\.\d+", "experts", parts[2])]
        found.setdefault(f"blk.{parts[1]}.{part}.weight", []).append(weight)
    return found


class Tensors:
    """The tensors of a GGUF by name."""

    def __init__(self, file: Path) -> None:
        self.header: Header = read_header(file)
        self.raw = file.read_bytes()
        self.tensors = {tensor.name: tensor for tensor in self.header.tensors}

    def kind(self, name: str) -> str:
        return self.tensors[name].encoding.name

    def bits(self, name: str) -> Array:
        """What is stored: F32 and BF16 as numbers of their size, blocks as bytes."""
        tensor = self.tensors[name]
        start = self.header.data_offset + tensor.offset
        raw = self.raw[start : start + tensor.n_bytes]
        dtype = {"F32": np.float32, "BF16": np.uint16}.get(tensor.encoding.name, np.uint8)
        return np.frombuffer(raw, dtype).reshape(*tensor.shape[:-1], -1)

    def values(self, name: str) -> Array:
        """Values of F32, of MXFP4 and of NVFP4, as ggml reads their blocks."""
        bits = self.bits(name)
        if self.kind(name) == "F32":
            return bits
        shape = self.tensors[name].shape
        if self.kind(name) == "MXFP4":
            blocks = bits.reshape(-1, 17)
            scale = np.exp2(blocks[:, :1].astype(np.float32) - 127)
            codes = np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], 1)
        else:
            blocks = bits.reshape(-1, 36)
            scale = unpack.E4M3[blocks[:, :4]].reshape(-1, 4, 1)
            halves = blocks[:, 4:].reshape(-1, 4, 8)
            codes = np.concatenate([halves & 15, halves >> 4], 2)
        values: Array = E2M1[codes] * scale
        return values.reshape(shape)
