"""What configs make: sources, targets, hyperparameters, and refusals."""

import re
from typing import Any

import numpy as np
import pytest

from quantkit.core.errors import CheckpointError, UnknownArchitectureError
from quantkit.families import FAMILIES, find_family
from quantkit.families.model import Block, Decoder, Target
from tests.random_checkpoints import config_of

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def describe(family: str, names: tuple[str, ...] = (), **changes: Any) -> Decoder:
    config = config_of(family, **changes)
    return find_family(config).describe(config, names)


def target(model: Decoder, name: str) -> Target:
    return next(t for t in model.targets if t.name == name)


# --- which family ----------------------------------------------------------------------------


def test_architectures_find_their_families() -> None:
    for family in FAMILIES:
        for architecture in family.architectures:
            assert find_family({"architectures": [architecture]}) is family
    assert [family.name for family in FAMILIES] == ["llama", "mistral", "mixtral"]


def test_an_unknown_architecture_is_told_the_known_ones() -> None:
    with pytest.raises(UnknownArchitectureError) as caught:
        find_family({"architectures": ["Gemma2ForCausalLM"]})
    assert str(caught.value) == (
        "config.json names the architecture Gemma2ForCausalLM, which quantkit does not know; it "
        "knows LlamaForCausalLM, LLaMAForCausalLM, LlamaModel, MistralForCausalLM, MistralModel, "
        "MixtralForCausalLM, MixtralModel."
    )


@pytest.mark.parametrize("entry", [None, [], "MistralForCausalLM", [None], {}, 3])
def test_a_config_without_an_architecture_is_refused(entry: object) -> None:
    with pytest.raises(CheckpointError, match='no "architectures" entry; add'):
        find_family({"architectures": entry})
    with pytest.raises(CheckpointError, match="architectures"):
        find_family({})


# --- tensors ---------------------------------------------------------------------------------


def test_a_dense_model() -> None:
    model = describe("mistral", head_dim=32, num_hidden_layers=1)
    assert (model.family, model.arch) == ("mistral", "llama")
    layer = "model.layers.0."
    assert model.sources == {
        "model.embed_tokens.weight": (384, 256),
        layer + "input_layernorm.weight": (256,),
        layer + "self_attn.q_proj.weight": (128, 256),
        layer + "self_attn.k_proj.weight": (64, 256),
        layer + "self_attn.v_proj.weight": (64, 256),
        layer + "self_attn.o_proj.weight": (256, 128),
        layer + "post_attention_layernorm.weight": (256,),
        layer + "mlp.gate_proj.weight": (512, 256),
        layer + "mlp.up_proj.weight": (512, 256),
        layer + "mlp.down_proj.weight": (256, 512),
        "model.norm.weight": (256,),
        "lm_head.weight": (384, 256),
    }
    assert {t.name: t.blocks[0].source for t in model.targets} == {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.attn_norm.weight": layer + "input_layernorm.weight",
        "blk.0.attn_q.weight": layer + "self_attn.q_proj.weight",
        "blk.0.attn_k.weight": layer + "self_attn.k_proj.weight",
        "blk.0.attn_v.weight": layer + "self_attn.v_proj.weight",
        "blk.0.attn_output.weight": layer + "self_attn.o_proj.weight",
        "blk.0.ffn_norm.weight": layer + "post_attention_layernorm.weight",
        "blk.0.ffn_gate.weight": layer + "mlp.gate_proj.weight",
        "blk.0.ffn_up.weight": layer + "mlp.up_proj.weight",
        "blk.0.ffn_down.weight": layer + "mlp.down_proj.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    assert all(t.shape == model.sources[t.blocks[0].source] for t in model.targets)
    assert model.n_parameters == sum(t.n_elements for t in model.targets)


def test_only_queries_and_keys_are_interleaved() -> None:
    model = describe("llama", attention_bias=True, num_attention_heads=8, num_hidden_layers=1)
    assert {t.name: t.rope_heads for t in model.targets if t.rope_heads} == {
        "blk.0.attn_q.weight": 8,
        "blk.0.attn_q.bias": 8,
        "blk.0.attn_k.weight": 2,
        "blk.0.attn_k.bias": 2,
    }


def test_biases_are_there_if_the_config_says_so() -> None:
    plain = describe("llama")
    by_config = describe("llama", attention_bias=True, mlp_bias=True)
    assert set(by_config.sources) - set(plain.sources) == {
        f"model.layers.{n}.{part}_proj.bias"
        for n in (0, 1)
        for part in (
            *(f"self_attn.{p}" for p in "qkvo"),
            *(f"mlp.{p}" for p in ("gate", "up", "down")),
        )
    }
    assert target(by_config, "blk.1.ffn_down.bias").shape == (256,)
    for part in ("self_attn.v_proj", "mlp.up_proj"):
        with pytest.raises(CheckpointError, match=r"does not say (attention|mlp)_bias = true"):
            describe("llama", (f"model.layers.1.{part}.bias",))
    for family in ("mistral", "mixtral"):  # transformers' classes have none
        other = describe(family, attention_bias=True, mlp_bias=True)
        assert not any(name.endswith(".bias") for name in other.sources)


def test_tied_embeddings_have_no_output_unless_it_is_there() -> None:
    tied = describe("llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in tied.sources
    assert "output.weight" not in [t.name for t in tied.targets]
    both = describe("llama", ("lm_head.weight",), tie_word_embeddings=True)
    assert target(both, "output.weight").blocks == (Block("lm_head.weight", 0, 384),)


def test_experts_one_by_one() -> None:
    model = describe("mixtral", num_local_experts=3, num_hidden_layers=1)
    moe = "model.layers.0.block_sparse_moe."
    assert model.sources[moe + "gate.weight"] == (3, 256)
    assert target(model, "blk.0.ffn_gate_inp.weight").role == "ffn_gate_inp"
    for name, part, shape in (
        ("ffn_gate_exps", "w1", (512, 256)),
        ("ffn_down_exps", "w2", (256, 512)),
        ("ffn_up_exps", "w3", (512, 256)),
    ):
        stacked = target(model, f"blk.0.{name}.weight")
        assert stacked.shape == (3, *shape)
        assert stacked.columns == shape[1]
        assert stacked.n_rows == 3 * shape[0]
        sources = [f"{moe}experts.{e}.{part}.weight" for e in range(3)]
        assert stacked.blocks == tuple(Block(source, 0, shape[0]) for source in sources)
        assert all(model.sources[source] == shape for source in sources)


def test_experts_fused() -> None:
    mlp = "model.layers.0.mlp."
    fused = (mlp + "gate.weight", mlp + "experts.gate_up_proj", mlp + "experts.down_proj")
    model = describe("mixtral", fused, num_local_experts=3, num_hidden_layers=1)
    assert [model.sources[name] for name in fused] == [(3, 256), (3, 1024, 256), (3, 256, 512)]
    assert not any("w1" in name for name in model.sources)
    blocks = {t.role: t.blocks for t in model.targets}
    assert blocks["ffn_gate_exps"] == tuple(Block(fused[1], 0, 512, e) for e in range(3))
    assert blocks["ffn_up_exps"] == tuple(Block(fused[1], 512, 512, e) for e in range(3))
    assert blocks["ffn_down_exps"] == tuple(Block(fused[2], 0, 256, e) for e in range(3))
    one_by_one = describe("mixtral", num_local_experts=3, num_hidden_layers=1)
    assert model.n_parameters == one_by_one.n_parameters
    assert [(t.name, t.shape) for t in model.targets] == [
        (t.name, t.shape) for t in one_by_one.targets
    ]


# --- hyperparameters -------------------------------------------------------------------------


def test_what_transformers_assumes_where_the_config_is_silent() -> None:
    silent: dict[str, Any] = dict.fromkeys(
        ("vocab_size", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps")
    ) | {"rope_theta": None, "num_local_experts": None, "num_experts_per_tok": None}
    for family, heads, kv_heads, context, eps, theta, experts in (
        ("llama", 4, 4, 2048, 1e-6, 1e4, 0),
        ("mistral", 16, 8, 131072, 1e-6, 1e4, 0),
        ("mixtral", 16, 8, 131072, 1e-5, 1e6, 8),
    ):
        hparams = describe(family, num_attention_heads=heads, **silent).hparams
        assert (hparams.vocab_size, hparams.num_key_value_heads) == (32000, kv_heads)
        assert (hparams.max_position_embeddings, hparams.rms_norm_eps) == (context, eps)
        assert (hparams.rope.theta, hparams.num_local_experts) == (theta, experts)
        assert hparams.num_experts_per_tok == (2 if experts else 0)


@pytest.mark.parametrize("family", ["llama", "mistral", "mixtral"])
def test_null_key_value_heads_are_one_per_attention_head(family: str) -> None:
    config = config_of(family, num_attention_heads=16) | {"num_key_value_heads": None}
    hparams = find_family(config).describe(config, ()).hparams
    assert (hparams.num_key_value_heads, hparams.facts.gqa) == (16, 1)


def test_other_nulls_are_as_good_as_silence() -> None:
    nulls = {"head_dim": None, "rope_scaling": None, "rms_norm_eps": None}
    config = config_of("llama") | nulls
    hparams = find_family(config).describe(config, ()).hparams
    assert (hparams.head_dim, hparams.rms_norm_eps, hparams.rope.scaling) == (64, 1e-6, {})


def test_rope_in_the_words_of_transformers_4_and_5() -> None:
    linear = {"rope_type": "linear", "factor": 2.0}
    for changes in (
        {"rope_theta": 5e5, "rope_scaling": linear},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, **linear}},
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5, **linear}},
    ):
        rope = describe("llama", **changes).hparams.rope
        assert rope.theta == 5e5
        assert (rope.form, rope.factor, set(rope.divisors)) == ("linear", 2.0, {2.0})


# --- Llama 3's rope scaling ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head_dim", "factor", "before", "between", "after"),
    [
        # What torch computed for Llama 3.1 8B and for Llama 3.2 1B.
        (
            128,
            8.0,
            29,
            "1.2074838876724243 1.5534145832061768 2.026313066482544 2.6945300102233887 "
            "3.684253215789795 5.257327079772949",
            29,
        ),
        (64, 32.0, 15, "1.6513292789459229 3.2922627925872803 9.666730880737305", 14),
    ],
)
def test_rope_factors_of_published_models(
    head_dim: int, factor: float, before: int, between: str, after: int
) -> None:
    model = describe(
        "llama", head_dim=head_dim, rope_theta=500000.0, rope_scaling={**LLAMA3, "factor": factor}
    )
    factors = target(model, "rope_freqs.weight").values
    expected = [1.0] * before + [float(text) for text in between.split()] + [factor] * after
    assert np.array_equal(np.array(factors), np.array(expected, np.float32).astype(float))
    assert "rope_freqs.weight" not in model.sources
    assert target(model, "rope_freqs.weight").shape == (head_dim // 2,)


def test_other_scalings_have_no_factors() -> None:
    for kind in ("default", "linear", "yarn", "dynamic"):
        model = describe("llama", rope_scaling={**LLAMA3, "rope_type": kind})
        assert model.hparams.rope.form == (kind if kind in ("linear", "yarn") else "")
        assert "rope_freqs.weight" not in [t.name for t in model.targets]


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "config.json has no hidden_size; copy it from"),
        ({"num_hidden_layers": 0}, "says num_hidden_layers = 0; it must be a whole number above 0"),
        ({"intermediate_size": 512.5}, "intermediate_size = 512.5; it must be a whole number"),
        ({"vocab_size": "384"}, "vocab_size = '384'; it must be a whole number"),
        ({"num_attention_heads": True}, "num_attention_heads = True; it must be a whole number"),
        ({"num_key_value_heads": 3}, "has 4 attention heads and 3 key-value heads, which do not"),
        ({"head_dim": 33}, "gives heads of 33 numbers; rotary attention needs an even count"),
        ({"hidden_size": 4}, "gives heads of 1 numbers"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0; it must be above 0"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps = '1e-5'; it must be a number without"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan; it must be above 0"),
        ({"rope_theta": -1.0}, "rope_theta = -1.0; it must be above 0"),
        ({"rope_theta": float("inf")}, "rope_theta = inf; it must be above 0"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be an object or null"),
        (
            {"rope_scaling": {"type": "su"}},
            "'su' rope scaling, .*default, linear, dynamic",
        ),
        ({"rope_theta": "500000"}, "rope_theta = '500000'; it must be a number without quotes"),
        ({"rope_theta": [1e4]}, r"rope_theta = \[10000.0\]; it must be a number\."),
        ({"rope_scaling": {**LLAMA3, "factor": "8"}}, "factor = '8'; it must be a number"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": None}}, "lacks high_freq_factor; copy it"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "lacks low_freq_factor; copy it"),
        ({"rope_scaling": {"type": None, "factor": 2.0}}, "rope_scaling does not say its rope_typ"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 0}}, "low_freq_factor = 0; it must be"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4}}, "the high one must be the larger"),
    ],
)
def test_numbers_of_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        describe("llama", **changes)
    assert str(caught.value).startswith("config.json")
    assert re.search(message, str(caught.value))


def test_more_experts_per_token_than_there_are() -> None:
    with pytest.raises(CheckpointError, match="uses 9 of 8 experts per token"):
        describe("mixtral", num_experts_per_tok=9)
