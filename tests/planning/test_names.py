"""What names say, written out: against llama-quantize itself they are in test_architectures.py."""

import pytest

from quantkit.core.errors import PlanError
from quantkit.families.model import Target
from quantkit.planning.llama_quantize import in_file_order
from quantkit.planning.names import category_of, may_be_quantized, n_dims
from quantkit.planning.recipe import parse_encoding

# Names and their categories; "-" before those that no quant touches.
NAMES = """
    output.weight output                        token_embd.weight token_embd
    per_layer_token_embd.weight token_embd      my_token_embd.weight other
    dec.output.weight other                     output.bias -other
    blk.0.attn_q.weight attn_q                  blk.0.attn_q.bias -other
    blk.0.attn_k.weight attn_k                  blk.0.attn_v.weight attn_v
    blk.0.attn_qkv.weight attn_qkv              blk.0.attn_kv_b.weight attn_kv_b
    blk.0.attn_output.weight attn_output        blk.0.attn_out.weight other
    blk.0.attn_q_a.weight other                 blk.0.attn_kv_a_mqa.weight other
    blk.0.attn_q_norm.weight -other             blk.0.attn_rel_b.weight -other
    enc.blk.0.attn_v.weight attn_v              dec.blk.0.cross_attn_v.weight attn_v
    blk.0.ffn_up.weight ffn_up                  blk.0.ffn_up_exps.weight ffn_up
    blk.0.ffn_up_shexp.weight ffn_up            blk.0.ffn_gate_up_exps.weight ffn_gate
    blk.0.ffn_gate.3.weight ffn_gate            blk.0.ffn_gate_inp.weight -ffn_gate
    blk.0.ffn_gate_tid2eid.weight -ffn_gate     blk.0.ffn_gate_inp_shexp.weight ffn_gate
    blk.0.ffn_down_exps.weight ffn_down         blk.0.ffn_down.bias -ffn_down
    blk.0.ffn_norm.weight -other                blk.0.post_ffw_norm.weight -other
    position_embd.weight -other                 token_types.weight -other
    blk.0.ssm_in.weight other                   blk.0.ssm_conv1d.weight -other
    blk.0.shortconv.conv.weight -other          blk.0.shortconv.in_proj.weight other
    blk.0.time_mix_w1.weight -other             blk.0.time_mix_key.weight other
    blk.0.time_mix_decay_w2.weight -other       blk.0.time_mix_lerp_fused.weight -other
    altup_proj.weight -other                    blk.0.laurel_l.weight -other
    per_layer_model_proj.weight -other          blk.0.indexer.k_proj.weight -other
    v.patch_embd.weight -other                  v.blk.0.attn_q.weight attn_q
    v.position_embd.weight -other               mm.0.weight other
    v.sam.blk.0.attn.rel_pos_h.weight -other    v.sam.neck.0.weight -other
    a.rvq.codebook.0.weight -other              mm.a.code_embd.weight -other
    cls.weight other                            cls.output.weight other
"""


def matrix(name: str, *shape: int) -> Target:
    return Target(name, "", shape or (8, 256))


def test_names() -> None:
    words = NAMES.split()
    for name, said in zip(words[::2], words[1::2], strict=True):
        kept, category = said.startswith("-"), said.removeprefix("-")
        assert may_be_quantized(matrix(name), "llama") is not kept, name
        assert category_of(name) == category, name


def test_one_architecture_has_names_of_its_own() -> None:
    for name in ("blk.0.attn_k_b.weight", "blk.0.hc_attn.weight", "blk.0.indexer.proj.weight"):
        assert may_be_quantized(matrix(name), "llama")
        assert not may_be_quantized(matrix(name), "glm5-next")
    assert may_be_quantized(matrix("blk.0.attn_q_a.weight"), "glm5-next")


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((7,), 1),
        ((1,), 1),
        ((1, 7), 1),
        ((7, 1), 2),
        ((1, 1), 1),
        ((1, 8, 7), 2),
        ((3, 1, 7), 3),
        ((1, 1, 7), 1),
        ((2, 1, 1, 1), 4),
    ],
)
def test_dimensions_are_those_that_ggml_sees(shape: tuple[int, ...], dims: int) -> None:
    target = matrix("blk.0.attn_q.weight", *shape)
    assert n_dims(target.shape) == dims
    assert may_be_quantized(target, "llama") is (dims > 1)


def test_layers_are_numbers_and_names_bytes() -> None:
    names = [
        "enc.blk.0.x",
        "output.weight",
        "blk.-2.x",
        "blk.0.z",
        "blk.0.\uff5e",  # after the next in UTF-16
        "blk.0.\U0001f600",
        "blk.2x.y",
        "blk.+3.x",
        "blk.10.x",
    ]
    ordered = [target.name for target in in_file_order(map(matrix, reversed(names)))]
    assert ordered == ["blk.-2.x", "enc.blk.0.x", *names[1:2], *names[3:]]


def test_types_of_output_and_embeddings_are_types_of_weights() -> None:
    assert parse_encoding("Q8_0", "--output-tensor-type") == parse_encoding("q8_0", "")
    for text in ("q8_k", "q9_0", "", "i32"):
        with pytest.raises(PlanError, match=r"--output-tensor-type '.*' is not a type of weights"):
            parse_encoding(text, "--output-tensor-type")
