"""Every value of config.json that is written: the GGUF in llama.cpp against transformers."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.families import find_family
from tests import native_tools
from tests.families import both
from tests.families.both import LIMIT, Llama, LlamaError

TOKENS = 96


@pytest.fixture(scope="module")
def llama() -> Iterator[Llama]:
    with both.llama() as worker:
        yield worker


YARN: Mapping[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA3: Mapping[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG: Mapping[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 4 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}


def scaled(**scaling: Any) -> dict[str, Any]:
    return {"rope_scaling": scaling}


# Each computes something else than the plain model; None removes an entry.
VALUES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", scaled(**LINEAR)),
    "linear, old name": ("mistral", scaled(type="linear", factor=4)),
    "linear, squeezed": ("llama", scaled(type="linear", factor=0.5)),
    "base": ("llama", {"rope_theta": 500.0}),
    "base of transformers 5": (
        "mixtral",
        {"rope_theta": None, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
    ),
    "base within wins": ("llama", {"rope_theta": 7e5, **scaled(rope_theta=500.0)}),
    "yarn": ("llama", scaled(**YARN)),
    "yarn, original context above": (
        "llama",
        {
            **scaled(rope_type="yarn", factor=4.0),
            "original_max_position_embeddings": 32,
        },
    ),
    "yarn, original context twice": (
        "llama",
        {**scaled(**YARN), "original_max_position_embeddings": 64},
    ),
    "yarn, original context unsaid": ("mistral", scaled(type="yarn", factor=4.0)),
    "yarn, factor null": ("llama", scaled(**{**YARN, "factor": None})),
    "yarn, betas": ("llama", scaled(**YARN, beta_fast=4, beta_slow=2.5)),
    "yarn, betas null and 0": ("llama", scaled(**YARN, beta_fast=None, beta_slow=0)),
    "yarn, not truncated": ("llama", scaled(**YARN, truncate=False)),
    "yarn, attention factor": ("mistral", scaled(**YARN, attention_factor=1.5)),
    "yarn, attention factor of none": ("llama", scaled(**YARN, attention_factor=1.0)),
    "yarn, mscale": ("llama", scaled(**YARN, mscale=1.5, mscale_all_dim=0.5)),
    "yarn, one mscale": ("llama", scaled(**YARN, mscale=1.5)),
    "yarn, tiny context": (
        "llama",
        scaled(**{**YARN, "original_max_position_embeddings": 4}),
    ),
    "yarn, factor below 1": ("llama", scaled(**{**YARN, "factor": 0.5})),
    "yarn, experts": (
        "mixtral",
        {"head_dim": 16, **scaled(**YARN, attention_factor=0.8, beta_fast=16)},
    ),
    "llama3": ("llama", scaled(**LLAMA3)),
    "llama3, original context above": (
        "llama",
        {**scaled(**LLAMA3), "original_max_position_embeddings": 64},
    ),
    "llama3 of a Mistral": ("mistral", scaled(**LLAMA3)),
    "longrope, long text": ("llama", scaled(**LONG)),
    "longrope, short text": (
        "mistral",
        scaled(**{**LONG, "original_max_position_embeddings": 256}),
    ),
    "longrope, factors": ("llama", scaled(**LONG, factor=2.0, attention_factor=1.25)),
    "proportional": (
        "llama",
        {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}},
    ),
    "proportional, stretched": (
        "mistral",
        {
            "partial_rotary_factor": 0.25,
            "rope_parameters": {"rope_type": "proportional", "factor": 4.0, "rope_theta": 1e4},
        },
    ),
    "scaling beside parameters": (
        "llama",
        {
            "rope_theta": None,
            "rope_parameters": {"rope_theta": 7e5, "rope_type": "default"},
            **scaled(**LINEAR),
        },
    ),
    "heads of another length": ("mistral", {"head_dim": 32}),
    "one key-value head": ("llama", {"num_key_value_heads": 1}),
    "as many key-value heads": ("llama", {"num_key_value_heads": None}),
    "epsilon": ("llama", {"rms_norm_eps": 0.5}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "three experts": ("mixtral", {"num_experts_per_tok": 3}),
    "all experts": ("mixtral", {"num_experts_per_tok": 4}),
    "one expert": ("mixtral", {"num_local_experts": 1, "num_experts_per_tok": 1}),
}


@pytest.mark.parametrize("name", VALUES)
def test_llama_cpp_computes_what_transformers_does(name: str, tmp_path: Path, llama: Llama) -> None:
    family, changes = VALUES[name]
    config = both.small_config(family, **changes)
    tensors = both.small_tensors(both.shapes_of(config))
    both.write(tmp_path / "model", config, tensors)
    tokens = both.tokens_of(TOKENS)
    expected = both.original_logits(tmp_path / "model", tokens)
    _, file = both.build_f32(tmp_path / "model", tmp_path / "out")
    assert both.largest(llama.logits(file, tokens), expected) < LIMIT
    plain = both.small_config(family)
    if both.shapes_of(plain) == both.shapes_of(config):  # else it is another model anyway
        both.write(tmp_path / "plain", plain, tensors)
        assert both.largest(both.original_logits(tmp_path / "plain", tokens), expected) > 50 * LIMIT


def test_layers_without_a_window_have_none(tmp_path: Path, llama: Llama) -> None:
    """transformers 5 takes a Mistral with layer_types for a Ministral."""
    full = {"layer_types": ["full_attention"], "head_dim": 16}
    config = both.small_config("mistral", sliding_window=4, **full)
    both.write(tmp_path / "model", config, both.small_tensors(both.shapes_of(config)))
    tokens = both.tokens_of(TOKENS)
    expected = both.original_logits(tmp_path / "model", tokens)
    work, file = both.build_f32(tmp_path / "model", tmp_path / "out")
    assert both.largest(llama.logits(file, tokens), expected) < LIMIT
    assert work.remarks == ()


LOOSE: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "a window": ("mistral", {"sliding_window": 24}, 24, r"last 24 tokens \(sliding_window\)"),
    "a window of a mixture": ("mixtral", {"sliding_window": 24}, 24, "last 24 tokens"),
    "windows in some layers": (
        "mistral",
        {
            "sliding_window": 24,
            "num_hidden_layers": 2,
            "layer_types": ["full_attention", "sliding_attention"],
            "head_dim": 16,
        },
        24,
        r"last 24 tokens",
    ),
    "dynamic scaling": (
        "llama",
        {**scaled(type="dynamic", factor=4.0), "max_position_embeddings": 48},
        48,
        r"Beyond 48 tokens .*dynamic rope scaling",
    ),
}


@pytest.mark.parametrize("name", LOOSE)
def test_what_llama_cpp_has_not_is_said_and_harmless_for_short_texts(
    name: str, tmp_path: Path, llama: Llama
) -> None:
    family, changes, same, remark = LOOSE[name]
    config = both.small_config(family, **changes)
    both.write(tmp_path / "model", config, both.small_tensors(both.shapes_of(config)))
    work, file = both.build_f32(tmp_path / "model", tmp_path / "out")
    [said] = work.remarks
    assert re.search(remark, said)
    for count, is_same in ((same, True), (2 * same, False)):
        tokens = both.tokens_of(count)
        expected = both.original_logits(tmp_path / "model", tokens)
        difference = both.largest(llama.logits(file, tokens), expected)
        assert (difference < LIMIT) == is_same, (count, difference)


@pytest.mark.parametrize("family", ["llama", "mistral", "mixtral"])
def test_harmless_values_are(family: str, tmp_path: Path, llama: Llama) -> None:
    """Whatever keys hold that are listed as harmless, or that no class reads."""
    config = both.small_config(family)
    tensors = both.small_tensors(both.shapes_of(config))
    odd = {
        "attention_dropout": 0.5, "initializer_range": 0.9, "pretraining_tp": 2,
        "router_jitter_noise": 0.7, "output_router_logits": False, "use_cache": False,
        "chunk_size_feed_forward": 3, "is_decoder": True,
        "final_logit_softcapping": 3.0, "attention_multiplier": 7.0, "logits_scaling": 9.0,
        "embedding_multiplier": 5.0, "residual_multiplier": 5.0, "query_pre_attn_scalar": 3,
        "use_sliding_window": True, "max_window_layers": 0, "norm_topk_prob": False,
        "routed_scaling_factor": 2.5, "rotary_pct": 0.5, "rotary_dim": 4, "qk_layernorm": True,
        "scoring_func": "sigmoid", "hidden_activation": "gelu", "unheard_of": 3,
    }  # fmt: skip
    if family == "llama":
        odd |= {"sliding_window": 4, "num_local_experts": 8, "num_experts_per_tok": 2}
    else:
        odd |= {"attention_bias": True, "mlp_bias": True}
    both.write(tmp_path / "model", config | odd, tensors)
    tokens = both.tokens_of(TOKENS)
    expected = both.original_logits(tmp_path / "model", tokens)
    work, file = both.build_f32(tmp_path / "model", tmp_path / "out")
    assert both.largest(llama.logits(file, tokens), expected) < LIMIT
    [remark] = work.remarks
    keys, _, rest = remark.removeprefix("config.json has ").partition(", which")
    assert rest.startswith(f" transformers' class for {family} does not read")
    assert keys.split(", ") == [
        "attention_multiplier", "embedding_multiplier", "final_logit_softcapping",
        "hidden_activation", "logits_scaling", "max_window_layers", "norm_topk_prob",
        "qk_layernorm", "query_pre_attn_scalar", "residual_multiplier", "rotary_dim", "rotary_pct",
        "routed_scaling_factor", "scoring_func", "unheard_of", "use_sliding_window",
    ]  # fmt: skip


@pytest.mark.parametrize("ties", [False, True])
def test_a_head_of_its_own_is_built(ties: bool, tmp_path: Path, llama: Llama) -> None:
    config = both.small_config("llama", tie_word_embeddings=False)
    tensors = both.small_tensors(both.shapes_of(config))
    both.write(tmp_path / "model", config | {"tie_word_embeddings": ties}, tensors)
    tokens = both.tokens_of(8)
    expected = both.original_logits(tmp_path / "model", tokens)
    work, file = both.build_f32(tmp_path / "model", tmp_path / "out")
    assert both.largest(llama.logits(file, tokens), expected) < LIMIT
    assert ["lm_head.weight" in remark for remark in work.remarks] == [True] * ties


def test_the_evaluator_survives_what_llama_cpp_does_not(tmp_path: Path, llama: Llama) -> None:
    config = both.small_config("llama")
    both.write(tmp_path / "model", config, both.small_tensors(both.shapes_of(config)))
    _, file = both.build_f32(tmp_path / "model", tmp_path / "out")
    with pytest.raises(LlamaError):
        llama.logits(file, [10**6])
    assert llama.logits(file, [3]).shape == (1, config["vocab_size"])


# What 4.57 reads otherwise, or not at all (docs/design.md); 5.23 holds.
OTHERWISE_IN_4 = {
    "base of transformers 5",
    "base within wins",
    "yarn, original context above",
    "yarn, original context twice",
    "yarn, factor null",
    "llama3, original context above",
    "longrope, long text",
    "longrope, short text",
    "proportional",
    "proportional, stretched",
}
ROPE_OF_4 = """
import json, sys
from transformers import LlamaConfig, MistralConfig, MixtralConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
kinds = {"llama": LlamaConfig, "mistral": MistralConfig, "mixtral": MixtralConfig}
found = {}
for name, config in json.load(open(sys.argv[1])).items():
    try:
        rope = LlamaRotaryEmbedding(kinds[config["model_type"]](**config))
        found[name] = [rope.inv_freq.tolist(), float(rope.attention_scaling)]
    except Exception as error:
        found[name] = repr(error)
json.dump(found, open(sys.argv[2], "w"))
"""


@pytest.mark.native
def test_transformers_4_rotates_alike_but_for_the_listed(tmp_path: Path) -> None:
    # Without a head_dim 4 makes no YaRN of a Mistral.
    configs = {
        name: both.small_config(family, **{"head_dim": 16, **changes})
        for name, (family, changes) in VALUES.items()
    }
    listing, out, script = (tmp_path / name for name in ("configs.json", "out.json", "run.py"))
    listing.write_text(json.dumps(configs))
    script.write_text(ROPE_OF_4)
    native_tools.run([native_tools.PYTHON, script, listing, out], makes=out)
    other = set()
    for name, theirs in json.loads(out.read_text()).items():
        hparams = find_family(configs[name]).describe(configs[name], ()).hparams
        rope, half = hparams.rope, hparams.head_dim // 2
        frequencies = rope.theta ** -(np.arange(half) / half) / np.array(rope.divisors or 1)
        same = not isinstance(theirs, str) and len(theirs[0]) == half
        same = same and (
            np.allclose(theirs[0], frequencies, rtol=1e-5) and np.isclose(theirs[1], rope.magnitude)
        )
        if not same:
            other.add(name)
    assert other == OTHERWISE_IN_4
