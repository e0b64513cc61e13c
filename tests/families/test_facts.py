"""What type rules ask of a model, from its keys."""

import re
from typing import Any

import pytest

from quantkit.core.errors import GGUFError
from quantkit.families.facts import MOST_EXPERTS, MOST_LAYERS, facts_of, known_architectures
from quantkit.families.model import Facts
from tests import native_tools
from tests.planning.large_models import LARGE_MODELS

SOURCE = native_tools.BUILD / "llama.cpp" / "src"


def keys(arch: str = "llama", **values: Any) -> dict[str, Any]:
    names = {"heads": "attention.head_count", "kv": "attention.head_count_kv"}
    return {f"{arch}.{names.get(name, name)}": value for name, value in values.items()}


def experts(count: int, used: Any = 2, **groups: int) -> dict[str, Any]:
    return {"expert_count": count, "expert_used_count": used, **groups}


def test_heads_are_one_number_or_one_for_each_layer() -> None:
    for heads, kv, gqa in (
        (32, 8, 4),
        ([32, 32], [8, 32], 4),
        (32, [0, 8], 0),  # a first layer without attention
        ([0, 32], [0, 8], 0),
        (7, 2, 3),
        (2, 4, 0),
    ):
        assert facts_of("llama", keys(block_count=2, heads=heads, kv=kv)) == Facts(2, 0, gqa)
    assert facts_of("llama", keys(block_count=2, heads=8)).gqa == 1
    assert facts_of("mamba", keys("mamba", block_count=2)).gqa == 0


@pytest.mark.parametrize(
    ("arch", "values", "is_70b"),
    [
        ("llama", {"block_count": 80, "heads": 64, "kv": 8}, True),
        ("llama-embed", {"block_count": 80, "heads": 64, "kv": 8}, True),
        ("llama", {"block_count": 80, "heads": 64, "kv": 64}, False),
        ("llama", {"block_count": 80, "heads": 64, "kv": 8, **experts(8)}, False),
        ("llama", {"block_count": 80, "heads": 64, "kv": 8, **experts(4)}, True),
        ("llama", {"block_count": 79, "heads": 64, "kv": 8}, False),
        ("llama", {"block_count": 81, "nextn_predict_layers": 1, "heads": 64, "kv": 8}, True),
        ("qwen2", {"block_count": 80, "heads": 64, "kv": 64}, True),
        ("deci", {"block_count": 80, "heads": [64] * 80, "kv": [8] * 80}, True),
        ("olmo", {"block_count": 80, "heads": 64}, True),
        ("jais2", {"block_count": 68, "heads": 64}, True),
        ("jais2", {"block_count": 80, "heads": 64}, False),
        ("qwen3", {"block_count": 80, "heads": 64, "kv": 8}, False),
    ],
)
def test_what_llama_cpp_takes_for_70b(arch: str, values: dict[str, Any], is_70b: bool) -> None:
    assert facts_of(arch, keys(arch, **values)).is_70b is is_70b


@pytest.mark.parametrize(
    ("arch", "values", "layers"),
    [
        ("qwen35", {"block_count": 41, "nextn_predict_layers": 1}, 41),
        ("graniteswitch", {"block_count": 40}, 41),
        ("nanbeige", {"block_count": 20, "num_loops": 2}, 40),
        ("nanbeige", {"block_count": 20, "num_loops": 1}, 20),
        ("nanbeige", {"block_count": 20}, 20),
    ],
)
def test_some_run_more_layers_than_they_have(
    arch: str, values: dict[str, int], layers: int
) -> None:
    assert facts_of(arch, keys(arch, **values)).n_layers == layers


def test_a_file_without_hyperparameters() -> None:
    assert facts_of("clip", {}) == Facts(n_layers=0)


@pytest.mark.parametrize("name", LARGE_MODELS)
def test_the_families_say_the_same(name: str) -> None:
    model = LARGE_MODELS[name]
    h = model.hparams
    found = facts_of(
        model.arch,
        keys(
            model.arch,
            block_count=h.num_hidden_layers,
            heads=h.num_attention_heads,
            kv=h.num_key_value_heads,
            **experts(h.num_local_experts, h.num_experts_per_tok),
        ),
    )
    assert found == model.facts


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({}, "block_count"),
        ({"block_count": 0}, "block_count"),
        ({"block_count": MOST_LAYERS + 1}, "block_count"),
        ({"block_count": "2"}, "block_count"),
        ({"block_count": 2.0}, "block_count"),
        ({"block_count": True}, "block_count"),
        ({"block_count": [2, 2]}, "block_count"),
        ({"block_count": 2, "expert_count": MOST_EXPERTS + 1}, "expert_count"),
        ({"block_count": 2, "expert_count": -1}, "expert_count"),
        ({"block_count": 2, "nextn_predict_layers": 3}, "nextn_predict_layers"),
        ({"block_count": 2, "heads": [4]}, "attention.head_count"),
        ({"block_count": 2, "heads": []}, "attention.head_count"),
        ({"block_count": 2, "heads": [4, 4], "kv": [-1, 4]}, "attention.head_count_kv"),
        ({"block_count": 2, "heads": "44"}, "attention.head_count"),
        ({"block_count": 2, "heads": None}, "attention.head_count"),
        ({"block_count": 2, "heads": ["4", "4"]}, "attention.head_count"),
        ({"block_count": 2, "heads": 2**32}, "attention.head_count"),
        ({"block_count": 2, **experts(4, 5)}, "expert_count"),
        ({"block_count": 2, **experts(4, 0)}, "expert_count"),
        ({"block_count": 2, **experts(4, [2, 5])}, "expert_count"),
        ({"block_count": 2, **experts(4, [2])}, "expert_used_count"),
        ({"block_count": 2, **experts(0, 1)}, "expert_count"),
        ({"block_count": 2, "expert_group_count": 1}, "expert_count"),
        ({"block_count": 2, **experts(4, expert_group_count=4)}, "expert_count"),
        ({"block_count": 2, **experts(4, expert_group_count=2)}, "expert_count"),
        (
            {"block_count": 2, **experts(6, expert_group_count=4, expert_group_used_count=2)},
            "expert_count",
        ),
        (
            {"block_count": 2, **experts(6, expert_group_count=2, expert_group_used_count=2)},
            "expert_count",
        ),
    ],
)
def test_keys_that_llama_cpp_would_not_take(values: dict[str, Any], key: str) -> None:
    with pytest.raises(GGUFError, match=re.escape(f"llama.{key}") + ".*convert it again"):
        facts_of("llama", keys(**values))


def test_experts_in_groups() -> None:
    groups = {"expert_group_count": 4, "expert_group_used_count": 2}
    values = keys("deepseek2", block_count=2, **experts(8, [2, 4], **groups))
    assert facts_of("deepseek2", values).n_experts == 8
    for arch, n_experts in (("hunyuan-dense", 0), ("hunyuan_vl", 0), ("hunyuan-moe", 1)):
        values = keys(arch, block_count=2, **experts(1, 1))
        assert facts_of(arch, values).n_experts == n_experts


@pytest.mark.parametrize("loops", [0, 26, 2**31])
def test_loops_have_a_limit(loops: int) -> None:
    with pytest.raises(GGUFError, match="num_loops"):
        facts_of("nanbeige", keys("nanbeige", block_count=20, num_loops=loops))


@pytest.mark.native
def test_architectures_and_limits_are_llama_cpps() -> None:
    names = (SOURCE / "llama-arch.cpp").read_text().split("LLM_ARCH_NAMES = {")[1].split("};")[0]
    by_number = dict(re.findall(r'\{ (LLM_ARCH_\w+),\s*"([^"]+)"', names))
    models = (SOURCE / "llama-model.cpp").read_text()
    mapping = models.split("llama_model_mapping(llm_arch arch")[1].split("\n}\n")[0]
    loaded = set(re.findall(r"case (LLM_ARCH_\w+):", mapping))
    assert known_architectures() == {by_number[number] for number in loaded}
    assert set(by_number) - loaded == {"LLM_ARCH_UNKNOWN", "LLM_ARCH_GPTJ"}
    limits = (SOURCE / "llama-hparams.h").read_text()
    assert re.findall(r"#define LLAMA_MAX_LAYERS +(\d+)", limits) == [str(MOST_LAYERS)]
    assert re.findall(r"#define LLAMA_MAX_EXPERTS +(\d+)", limits) == [str(MOST_EXPERTS)]


@pytest.mark.native
def test_no_other_architecture_is_taken_for_70b() -> None:
    found = {f.stem for f in (SOURCE / "models").glob("*.cpp") if "LLM_TYPE_70B" in f.read_text()}
    assert found == {"llama", "qwen2", "deci", "olmo", "jais2"}
    heirs = re.findall(
        r"struct llama_model_(\w+) : public llama_model_(\w+)",
        (SOURCE / "models" / "models.h").read_text(),
    )
    assert [heir for heir, parent in heirs if parent in found] == ["llama_embed"]


@pytest.mark.native
def test_no_other_architecture_counts_its_layers_otherwise() -> None:
    assigned = re.compile(r"hparams\.(?:n_layer_all|n_head_arr|n_head_kv_arr|n_expert)\b.* = ")
    files = (SOURCE / "models").glob("*.cpp")
    found = {f.stem for f in files if assigned.search(f.read_text())}
    assert found == {"granite-switch", "nanbeige"}
