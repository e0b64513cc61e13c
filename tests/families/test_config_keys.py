"""The table of config.json's keys: nothing is outside it, and nothing is in it twice."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from quantkit.core.errors import CheckpointError
from quantkit.families import find_family
from quantkit.families.config_keys import FOREIGN, HARMLESS, KNOWN, ONLY, READ
from quantkit.families.rope import TYPES
from tests import native_tools
from tests.cli.command import quantkit, refusal
from tests.families import both
from tests.random_checkpoints import config_of, random_checkpoint

# What a version of transformers knows: fields, what constructors take, what it sets and writes,
# what its attribute maps rename, and what of text generation it takes out of a config.
LIST_KEYS = """
import dataclasses, inspect, json, sys
from transformers import GenerationConfig, LlamaConfig, MistralConfig, MixtralConfig
keys = set()
for kind in (LlamaConfig, MistralConfig, MixtralConfig):
    made = kind()
    keys |= {*made.to_dict(), *vars(made), *kind.attribute_map}
    if dataclasses.is_dataclass(kind):
        keys |= {field.name for field in dataclasses.fields(kind)}
    for base in kind.__mro__:
        if "__init__" in vars(base):
            keys |= set(inspect.signature(base.__init__).parameters)
for kind, name in (
    (GenerationConfig, "_get_default_generation_params"),
    (LlamaConfig, "_get_global_generation_defaults"),
):
    if hasattr(kind, name):
        keys |= set(getattr(kind, name)())
"""
LIST_TYPES = """
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
"""
NO_KEYS = {"self", "args", "kwargs"}


def test_no_key_of_transformers_is_outside_the_table() -> None:
    found: dict[str, Any] = {}
    exec(LIST_KEYS + LIST_TYPES, found)  # noqa: S102 - the text above
    assert len(found["keys"]) > 70
    assert found["keys"] - NO_KEYS - KNOWN == set()
    assert set(found["ROPE_INIT_FUNCTIONS"]) - set(TYPES) == set()


@pytest.mark.native
def test_no_key_of_transformers_4_is_outside_the_table(tmp_path: Path) -> None:
    script, out = tmp_path / "list.py", tmp_path / "keys.json"
    show = "json.dump([sorted(keys), sorted(ROPE_INIT_FUNCTIONS)], open(sys.argv[1], 'w'))"
    script.write_text(LIST_KEYS + LIST_TYPES + show)
    native_tools.run([native_tools.PYTHON, script, out], makes=out)
    keys, types = map(set, json.loads(out.read_text()))
    assert len(keys) > 70
    assert keys - NO_KEYS - KNOWN == set()
    assert types - set(TYPES) == set()


def test_no_key_is_in_the_table_twice() -> None:
    groups = [READ, ONLY, FOREIGN, *HARMLESS.values()]
    assert sum(map(len, groups)) == len(KNOWN)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "relu": ({"hidden_act": "relu"}, "hidden_act = 'relu': .*SiLU alone"),
    "gelu": ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    "no activation": ({"hidden_act": 3}, "hidden_act = 3"),
    "both ways": ({"is_causal": False}, "is_causal = False: .*look ahead"),
    "a part of each head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    "a part, within": (
        {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_type": "linear", "factor": 2.0}},
        "partial_rotary_factor = 0.5",
    ),
    "layers of their own": ({"per_layer_config": {"0": {"head_dim": 32}}}, "per_layer_config"),
    "rope per kind of layer": (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        r"differs from layer to layer \(full_attention\)",
    ),
    "another class": ({"model_type": "qwen2"}, "model_type = 'qwen2', but its architecture"),
    "a part of a model": ({"text_config": {"hidden_size": 64}}, "text_config = .*only a part"),
    "its own code": (
        {"auto_map": {"AutoModelForCausalLM": "m.X"}, "attention_multiplier": 0.5},
        "attention_multiplier = 0.5, which only the modeling code",
    ),
    "two names": ({"rope_scaling": {"type": "linear", "rope_type": "yarn"}}, "says both"),
    "another type": ({"rope_scaling": {"type": "ntk", "factor": 2}}, "'ntk' rope scaling"),
    "no factor": ({"rope_scaling": {"type": "linear"}}, "is linear without a factor"),
    "no window": ({"sliding_window": 0}, "sliding_window = 0"),
    "other layers": ({"layer_types": ["conv", "conv"]}, "layer_types must be"),
    "a flag that is none": ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_built_is_refused(name: str) -> None:
    changes, reason = REFUSED[name]
    config = config_of("mistral") | changes
    with pytest.raises(CheckpointError) as caught:
        find_family(config).describe(config, ())
    assert re.search(reason, str(caught.value))


@pytest.mark.parametrize("command", ["build", "calibrate", "perplexity", "fit", "inspect"])
def test_every_command_refuses_alike(command: str, tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", "mistral", num_hidden_layers=1)
    both.edit_config(folder, hidden_act="relu")
    options = ("-q", "f32", "-o", tmp_path / "out") if command == "build" else ()
    sentence = refusal(quantkit(command, folder, *options))
    assert "hidden_act = 'relu'" in sentence
    assert not (tmp_path / "out").exists()


def remarks_of(family: str, **changes: Any) -> tuple[str, ...]:
    config = config_of(family) | changes
    return find_family(config).describe(config, ()).remarks


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"unsloth_version": "2026.1", "temperature": 0.5, "sliding_window": None}, None),
        ({"unheard_of": None, "norm_topk_prob": True, "logits_scaling": 1.0}, None),
        ({"auto_map": {"AutoTokenizer": ["x", None]}}, None),
        ({"unheard_of": 0, "logits_scaling": 8}, "has logits_scaling, unheard_of, which"),
        ({"auto_map": {"AutoModelForCausalLM": "m.X"}}, "brings modeling code of its own"),
        ({"sliding_window": 64}, "the last 64 tokens"),
        ({"sliding_window": 512}, None),
        ({"rope_scaling": {"type": "default", "factor": 4}}, "has factor, which rope type default"),
        ({"rope_scaling": {"rope_theta": 5e5}}, "rope_theta = 10000.0, and 500000.0 in rope_scal"),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 4.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            "rope_scaling beside another rope_parameters",
        ),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 4.0},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0},
            },
            None,
        ),
    ],
)
def test_remarks(changes: dict[str, Any], said: str | None) -> None:
    remarks = remarks_of("mistral", **changes)
    assert len(remarks) == (said is not None)
    for remark in remarks:
        assert said is not None
        assert said in remark
        assert remark.endswith(".")
