"""A random search over configs: what is built computes what transformers does, or it is refused.

Configs are drawn from the keys that transformers knows, those of other architectures and odd values
of all of them. Where transformers itself refuses a config, there is nothing to compare with.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from quantkit.core.errors import QuantkitError
from quantkit.families.model import Decoder
from tests.families import both
from tests.families.both import LIMIT, Llama

TOKENS = 40
ABSENT = object()

# The first values of each are sound ones, of which most are taken.
SOUND: dict[str, list[Any]] = {
    "hidden_act": ["silu", "swish"],
    "attention_bias": [True, False],
    "mlp_bias": [True, False],
    "tie_word_embeddings": [True, False],
    "sliding_window": [None, 4, 16, 4096],
    "layer_types": [["full_attention"], ["sliding_attention"], None],
    "head_dim": [None, 8, 16, 32],
    "num_key_value_heads": [None, 1, 2, 4],
    "num_attention_heads": [2, 4, 8],
    "hidden_size": [64, 72, 96],
    "intermediate_size": [32, 96, 100],
    "num_hidden_layers": [1, 2],
    "rms_norm_eps": [1e-6, 1e-5, 0.1, 1, None],
    "max_position_embeddings": [32, 256, 512, 131072, None],
    "original_max_position_embeddings": [16, 32, 256, None],
    "rope_theta": [500.0, 1e4, 5e5, 1000000, None],
    "partial_rotary_factor": [1.0, 1, None],
    "num_local_experts": [1, 2, 4, None],
    "num_experts": [4, None],
    "num_experts_per_tok": [1, 2, 3, None],
    "is_causal": [True],
    "pad_token_id": [0, 2, None],
    "auto_map": [{"AutoConfig": "configuration_x.XConfig"}],
    "torch_dtype": ["bfloat16", "float16"],
    "dtype": ["float32", "bfloat16"],
    "transformers_version": ["4.57.6", "5.23.0"],
    "pretraining_tp": [1, 2],
    "attention_dropout": [0.5],
    "initializer_range": [0.5],
    "router_jitter_noise": [0.5],
    "router_aux_loss_coef": [0.5],
    "output_router_logits": [False, True],
    "use_cache": [True, False],
    "chunk_size_feed_forward": [0, 2],
    "is_decoder": [True],
    "is_encoder_decoder": [False],
    "add_cross_attention": [False],
    "tie_encoder_decoder": [True, False],
    "pruned_heads": [{}],
    "per_layer_config": [None],
    "use_sliding_window": [True, False],
    "max_window_layers": [1],
    "norm_topk_prob": [True, False],
    "attention_multiplier": [2.0],
    "embedding_multiplier": [3.0],
    "residual_multiplier": [0.5],
    "logits_scaling": [4.0],
    "final_logit_softcapping": [5.0],
    "query_pre_attn_scalar": [64],
    "rotary_dim": [4],
    "scoring_func": ["sigmoid"],
    "unsloth_version": ["2026.1"],
    "temperature": [0.3],
}
ODD: dict[str, list[Any]] = {
    "hidden_act": ["relu", "gelu", "gelu_pytorch_tanh", "mish", None, 3],
    "attention_bias": [None, 1, "yes"],
    "mlp_bias": [None, 0],
    "tie_word_embeddings": [None, "false"],
    "sliding_window": [0, -1, "4096", True, 2.5],
    "layer_types": [["linear_attention"], ["full_attention"] * 3, "full_attention"],
    "head_dim": [0, 2, 7, -16, "16"],
    "num_key_value_heads": [3, 0, "2"],
    "num_attention_heads": [5, 6, 0],
    "hidden_size": [66, 0],
    "rms_norm_eps": [0, "1e-5", -1],
    "max_position_embeddings": [0, 2**40, "512", 512.0],
    "original_max_position_embeddings": [0, 1, "64", 64.0],
    "rope_theta": [0, 1, 0.5, "1e4", 1e30],
    "partial_rotary_factor": [0.5, 0, 2],
    "num_local_experts": [0, "4"],
    "num_experts": [2, 8],
    "num_experts_per_tok": [9, 0],
    "is_causal": [False, None],
    "pad_token_id": [-1, 10**6],
    "auto_map": [{"AutoModelForCausalLM": "modeling_x.XForCausalLM"}],
    "is_encoder_decoder": [True],
    "add_cross_attention": [True],
    "pruned_heads": [{"0": [1]}],
    "per_layer_config": [{"0": {"rms_norm_eps": 0.5}}],
    "text_config": [{"hidden_size": 64}, None],
    "model_type": ["llama", "mistral", "mixtral", ABSENT],
}
SCALING: dict[str, list[Any]] = {
    "factor": [1.0, 2, 4.0, 40.0, 0.5],
    "original_max_position_embeddings": [16, 32, 256],
    "attention_factor": [0.8, 1.0, 1.5, 1, None],
    "beta_fast": [32, 16.0, 2, None, 0],
    "beta_slow": [1, 0.5, 2.0, None],
    "mscale": [0.7, 1.0, 1.3, 0, None],
    "mscale_all_dim": [0.7, 1.0, 0],
    "truncate": [True, False, None],
    "low_freq_factor": [1.0, 0.5, 2],
    "high_freq_factor": [4.0, 8],
    "short_factor": [[1.0 + i / 3 for i in range(8)], [1.5] * 8],
    "long_factor": [[2.0 + i for i in range(8)], [3, 1, 4, 1, 5, 9, 2, 6]],
    "rope_theta": [1e4, 500.0, 2e5],
    "partial_rotary_factor": [1.0],
    "finetuned": [True],
    "extrapolation_factor": [0.5],
    "attn_factor": [0.5],
}
ODD_SCALING: dict[str, list[Any]] = {
    "factor": [None, 0, -1, "4", 1e30],
    "original_max_position_embeddings": [4, 0, None, 64.5],
    "attention_factor": [0, -1.0, "1"],
    "beta_fast": ["32", -1, 0.5],
    "beta_slow": [40, -1],
    "low_freq_factor": [4.0, 0],
    "short_factor": [[1.0] * 7, "1", [0.0] * 8, None],
    "long_factor": [[1.0] * 9],
    "rope_theta": [None, "1e4"],
    "partial_rotary_factor": [0.5, 0.25, 0, 2],
    "full_attention": [{"rope_type": "default", "rope_theta": 1e4}],
    "mrope_section": [[2, 3, 3]],
}
NEEDED = {
    "default": [],
    "linear": ["factor"],
    "dynamic": ["factor"],
    "yarn": ["factor", "original_max_position_embeddings"],
    "llama3": [
        "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
    ],
    "longrope": ["short_factor", "long_factor", "original_max_position_embeddings"],
    "proportional": ["rope_theta", "partial_rotary_factor"],
}  # fmt: skip
ODD_TYPES = ["su", "ntk", "LINEAR", "mrope", None]


def rarely(draw: DrawFn, one_of: int = 10) -> bool:
    """True for one of so many (hypothesis is fond of the ends of a range)."""
    return draw(st.integers(0, one_of - 1)) == one_of // 2


def value_of(draw: DrawFn, key: str, sound: dict[str, list[Any]], odd: dict[str, list[Any]]) -> Any:
    """A value of a key; where there are sound ones, nearly always one of them."""
    is_odd = key in odd and (key not in sound or rarely(draw))
    return draw(st.sampled_from((odd if is_odd else sound)[key]))


@st.composite
def scalings(draw: DrawFn) -> Any:
    """What rope_scaling or rope_parameters may hold."""
    kind = draw(st.sampled_from(ODD_TYPES if rarely(draw, 20) else list(NEEDED)))
    scaling: dict[str, Any] = {}
    names = draw(st.sampled_from([("rope_type",), ("type",), ("rope_type", "type"), ()]))
    for name in names:
        scaling[name] = kind
    if rarely(draw, 30):
        scaling["type"] = draw(st.sampled_from(list(NEEDED)))
    wanted = set(NEEDED.get(kind, ())) if kind is not None else set()
    if rarely(draw):
        wanted = set()
    wanted |= set(draw(st.lists(st.sampled_from(sorted(SCALING)), max_size=3)))
    if rarely(draw, 20):
        wanted.add(draw(st.sampled_from(sorted(ODD_SCALING))))
    for key in sorted(wanted):
        scaling[key] = value_of(draw, key, SCALING, ODD_SCALING)
    if kind == "proportional" and "partial_rotary_factor" in scaling:
        scaling["partial_rotary_factor"] = draw(st.sampled_from([1.0, 0.5, 0.25]))
    return scaling


def rope(draw: DrawFn) -> Any:
    return draw(st.sampled_from([None, {}, "yarn", []]) if rarely(draw) else scalings())


@st.composite
def configs(draw: DrawFn) -> dict[str, Any]:
    """A config of one of the three architectures, with some of its keys changed."""
    family = draw(st.sampled_from(["llama", "mistral", "mixtral"]))
    config = both.small_config(family)
    keys = draw(st.lists(st.sampled_from(sorted(SOUND | ODD)), max_size=5, unique=True))
    for key in keys:
        config[key] = value_of(draw, key, SOUND, ODD)
    for place in draw(st.sampled_from([(), ("rope_scaling",), ("rope_parameters",)])):
        config[place] = rope(draw)
    if rarely(draw, 6):
        config["rope_scaling"], config["rope_parameters"] = rope(draw), rope(draw)
    if draw(st.booleans()):
        config.pop("rope_theta", None)
    if family != "llama":  # transformers makes no YaRN of a Mixtral without
        config.setdefault("head_dim", 16)
    config = {key: value for key, value in config.items() if value is not ABSENT}
    if rarely(draw):
        config["extra lm_head"] = True
    if rarely(draw):
        config["extra biases"] = True
    return config


def examine(config: dict[str, Any], folder: Path, llama: Llama) -> str:
    """What became of a config; fails if what is built computes something else."""
    has_head, has_biases = config.pop("extra lm_head", False), config.pop("extra biases", False)
    try:
        shapes = both.shapes_of(config)
        if has_head:
            shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
        if has_biases:
            rows = shapes["model.layers.0.self_attn.v_proj.weight"][0]
            shapes["model.layers.0.self_attn.v_proj.bias"] = (rows,)
        both.write(folder / "model", config, both.small_tensors(shapes))
        work, file = both.build_f32(folder / "model", folder / "out")
    except QuantkitError:
        return "refused"
    assert isinstance(work.model, Decoder)
    hparams = work.model.hparams
    count, compared = TOKENS, TOKENS
    if any("dynamic" in remark for remark in work.remarks):
        count = compared = min(count, hparams.max_position_embeddings)
    if any("sliding_window" in remark for remark in work.remarks):
        compared = min(compared, hparams.sliding_window or compared)
    tokens = both.tokens_of(count)
    try:
        expected = both.original_logits(folder / "model", tokens)
    except Exception:  # noqa: BLE001 - whatever transformers raises
        return "not of transformers"
    if not np.isfinite(expected).all():
        return "not of transformers"
    ours = llama.logits(file, tokens)
    difference = both.largest(ours[:compared], expected[:compared])
    assert difference < LIMIT, (difference, work.remarks)
    return "built"


def search(count: int, llama: Llama) -> Counter[str]:
    found: Counter[str] = Counter()

    @settings(
        max_examples=count,
        derandomize=True,
        deadline=None,  # time: no limit
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(configs())
    def run(config: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory(prefix="quantkit-search-") as folder:
            found[examine(dict(config), Path(folder), llama)] += 1

    run()
    return found


@pytest.fixture(scope="module")
def llama() -> Iterator[Llama]:
    with both.llama() as worker:
        yield worker


def check(count: int, llama: Llama) -> None:
    found = search(count, llama)
    sys.stdout.write(f"{count} configs: {dict(found)}\n")
    assert sum(found.values()) >= 0.9 * count
    assert found["built"] > 0.5 * count
    assert found["refused"] > 0.1 * count


def test_40_configs(llama: Llama) -> None:
    check(40, llama)


@pytest.mark.native
def test_300_configs(llama: Llama) -> None:
    check(300, llama)


@pytest.mark.search
def test_3000_configs(llama: Llama) -> None:
    check(3000, llama)
