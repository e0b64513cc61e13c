"""Types and sizes without any tool: what llama-quantize printed once, and its rules one by one."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.checkpoint.imatrix import Imatrix
from quantkit.checkpoint.sources import check_sources
from quantkit.core.errors import CheckpointError, ImatrixError, PlanError, UnknownQuantError
from quantkit.core.tensors import FLOAT_BYTES, SourceTensor
from quantkit.families.model import Decoder
from quantkit.planning.llama_quantize import in_file_order
from quantkit.planning.plan import Plan, make_plan, outline_plan
from quantkit.planning.quants import all_quants, find_quants
from quantkit.planning.recipe import EncodingOptions, parse_override, recipe_of
from tests.families.test_families import LLAMA3
from tests.planning.large_models import LARGE_MODELS, model_of

# MiB of all tensors, as llama-quantize --dry-run gives them without an importance matrix.
SIZES = {
    "Mixtral-8x22B": """
        f32 536425.15  bf16 268219.15  f16 268219.15  q8_0 142497.59  q6_k 110182.27
        q5_1 100813.58  q5_k_m 95341.86  q5_k_s 92485.86  q5_0 92485.86  q4_1 84158.14
        q4_k_m 81626.43  q4_k_s 76754.43  iq4_nl 76754.43  q4_0 75830.43  iq4_xs 72821.57
        q3_k_l 69222.02  q3_k_m 64653.77  iq3_m 61509.77  iq3_s 58653.77  q3_k_s 58653.77
        iq3_xs 55535.27  iq3_xxs 55090.37  q2_k 49693.98  q2_k_s 45861.48  iq2_m 44548.37
        iq2_s 40621.37  iq2_xs 40056.33  iq2_xxs 36129.33  iq1_m 31220.58  iq1_s 28275.33
        mxfp4_moe 73953.59  q2_0 38408.43  tq2_0 35289.93  tq1_0 29052.93  q1_0 19618.32
        q6_k_l 110273.09  q5_k_l 95457.59  q4_k_l 81765.59  q3_k_xl 69386.09  q2_k_l 49877.09
    """,
    "Mistral-22B": """
        f32 84830.65  bf16 42416.65  f16 42416.65  q8_0 22535.09  q6_k 17399.02
        q5_1 15921.08  q5_k_m 14986.68  q5_k_s 14607.36  q5_0 14607.36  q4_1 13293.64
        q4_k_m 12716.24  q4_k_s 12066.93  iq4_nl 12105.93  q4_0 11979.93  iq4_xs 11480.57
        q3_k_l 11180.65  q3_k_m 10252.15  iq3_m 9589.90  iq3_s 9232.90  q3_k_s 9188.27
        iq3_xs 8744.65  iq3_xxs 8536.00  q2_k 7882.98  q2_k_s 7289.73  iq2_m 7260.25
        iq2_s 6703.75  iq2_xs 6332.95  iq2_xxs 5713.45  iq1_m 5017.83  iq1_s 4600.45
        mxfp4_moe 22535.09  q2_0 6120.93  tq2_0 5632.68  tq1_0 4656.18  q1_0 3112.32
        q6_k_l 17489.84  q5_k_l 15102.40  q4_k_l 12855.40  q3_k_xl 11344.71  q2_k_l 8066.09
    """,
    "Mixtral-4x7B": """
        f32 92139.02  bf16 46071.02  f16 46071.02  q8_0 24476.64  q6_k 18898.09
        q5_1 17287.30  q5_k_m 16339.99  q5_k_s 15855.49  q5_0 15855.49  q4_1 14423.68
        q4_k_m 13932.37  q4_k_s 13105.87  iq4_nl 13119.87  q4_0 12991.87  iq4_xs 12435.96
        q3_k_l 11962.27  q3_k_m 11043.27  iq3_m 10153.27  iq3_s 9966.27  q3_k_s 9949.27
        iq3_xs 9432.27  iq3_xxs 9326.66  q2_k 8432.57  q2_k_s 7862.57  iq2_m 7625.66
        iq2_s 6961.66  iq2_xs 6785.97  iq2_xxs 6105.97  iq1_m 5275.97  iq1_s 4777.97
        mxfp4_moe 13052.64  q2_0 6583.87  tq2_0 6049.87  tq1_0 4981.87  q1_0 3327.13
        q6_k_l 18958.64  q5_k_l 16417.14  q4_k_l 14025.14  q3_k_xl 12071.64  q2_k_l 8554.64
    """,
    "Llama-3-70B": """
        f32 269141.03  bf16 134573.03  f16 134573.03  q8_0 71494.28  q6_k 55198.94
        q5_1 50538.48  q5_k_m 47628.36  q5_k_s 46395.86  q5_0 46395.86  q4_1 42253.23
        q4_k_m 40543.11  q4_k_s 38470.61  iq4_nl 38470.61  q4_0 38110.61  iq4_xs 36489.30
        q3_k_l 35412.53  q3_k_m 32672.53  iq3_m 30450.03  iq3_s 29472.53  q3_k_s 29472.53
        iq3_xs 27942.53  iq3_xxs 27326.95  q2_k 25145.77  q2_k_s 23330.77  iq2_m 22994.45
        iq2_s 21204.45  iq2_xs 20155.19  iq2_xxs 18205.19  iq1_m 15967.69  iq1_s 14625.19
        mxfp4_moe 71494.28  q2_0 19750.61  tq2_0 18220.61  tq1_0 15160.61  q1_0 10147.89
        q6_k_l 55684.28  q5_k_l 48246.78  q4_k_l 41286.78  q3_k_xl 36289.28  q2_k_l 26124.28
    """,
    "SmolLM2-135M": """
        f32 513.13  bf16 256.63  f16 256.63  q8_0 136.40  q6_k 130.27  q5_1 104.76
        q5_k_m 105.21  q5_k_s 103.18  q5_0 98.43  q4_1 92.10  q4_k_m 98.87  q4_k_s 95.61
        iq4_nl 86.09  q4_0 85.77  iq4_xs 85.38  q3_k_l 91.31  q3_k_m 87.48  iq3_m 84.33
        iq3_s 82.41  q3_k_s 82.41  iq3_xs 82.41  iq3_xxs 82.75  q2_k 82.41  q2_k_s 80.44
        iq2_m 79.92  iq2_s 79.21  iq2_xs 78.95  iq2_xxs 78.24  iq1_m 77.35  iq1_s 76.82
        mxfp4_moe 136.40  q2_0 57.30  tq2_0 78.06  tq1_0 76.88
        q6_k_l 130.27  q5_k_l 105.21  q4_k_l 98.87  q3_k_xl 91.31  q2_k_l 82.41
    """,
}


def outline(model: Decoder, quant: str, *overrides: str, has_imatrix: bool = False) -> Plan:
    asked = all_quants()[quant]
    recipe = recipe_of(asked, EncodingOptions(tensor_type=overrides))
    return outline_plan(model, asked, has_imatrix, recipe)


def types(plan: Plan, part: str) -> list[str]:
    """The encodings of the tensors with this in their names, in file order."""
    return [tensor.encoding.name for tensor in plan.tensors if part in tensor.target.name]


def small(family: str = "mistral", **config: Any) -> Decoder:
    return model_of(family, **{"num_hidden_layers": 8, "num_key_value_heads": 1, **config})


# --- whole models ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_llama_quantizes(name: str) -> None:
    words = SIZES[name].split()
    expected = dict(zip(words[::2], words[1::2], strict=True))
    plans = {quant: outline(LARGE_MODELS[name], quant) for quant in expected}
    # Where rows are no multiple of 128, llama-quantize knows nothing to store them as instead.
    assert set(all_quants()) - set(plans) == ({"q1_0"} if name == "SmolLM2-135M" else set())
    assert {q: f"{plan.n_bytes / 2**20:.2f}" for q, plan in plans.items()} == expected


def test_sizes_are_whole_numbers_of_block_bytes() -> None:
    plan = outline(LARGE_MODELS["Mixtral-8x22B"], "q8_0")
    tensor = next(t for t in plan.tensors if t.target.name == "blk.7.ffn_down_exps.weight")
    assert tensor.target.shape == (8, 6144, 16384)
    assert tensor.row_bytes == 16384 // 32 * 34
    assert tensor.n_bytes == 8 * 6144 * 17408
    assert plan.n_bytes == sum(t.n_bytes for t in plan.tensors)
    assert plan.bits_per_weight == pytest.approx(8.5, abs=0.01)


def test_files_are_in_order_of_layers_then_names() -> None:
    targets = in_file_order(
        model_of("llama", num_hidden_layers=11, rope_scaling=LLAMA3, attention_bias=True).targets
    )
    names = [target.name for target in targets]
    head = ["output.weight", "output_norm.weight", "rope_freqs.weight", "token_embd.weight"]
    assert names[:6] == [*head, "blk.0.attn_k.bias", "blk.0.attn_k.weight"]
    layers = [int(name.split(".")[1]) for name in names[4:]]
    assert layers == sorted(layers)
    assert names[-1] == "blk.10.ffn_up.weight"


# --- rules -----------------------------------------------------------------------------------


def test_what_llama_quantize_gives_up_on_is_refused() -> None:
    with pytest.raises(PlanError) as caught:
        outline(LARGE_MODELS["SmolLM2-135M"], "q1_0")
    assert str(caught.value) == (
        "blk.0.attn_k.weight has rows of 576, no multiple of 128 as Q1_0 needs, and llama-quantize "
        "has no fallback for it; name a type with --tensor-type, or choose another "
        "quant."
    )


@pytest.mark.parametrize("quant", all_quants())
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_norms_biases_and_the_router_stay_f32(family: str, quant: str) -> None:
    model = model_of(family, attention_bias=True, mlp_bias=True)
    plan = outline(model, quant)
    for part in ("_norm.weight", ".bias", "ffn_gate_inp"):
        assert set(types(plan, part)) <= {"F32"}
    assert len(types(plan, ".bias")) == (14 if family == "llama" else 0)


def test_layers_with_more_bits() -> None:
    plan = outline(small(num_hidden_layers=16), "q4_k_m")
    raised = [i for i, kind in enumerate(types(plan, "ffn_down")) if kind == "Q6_K"]
    # The first and the last eighth, and every third from the second layer on in between.
    assert raised == [0, 1, 4, 7, 10, 13, 14, 15]
    assert types(plan, "attn_v") == types(plan, "ffn_down")
    assert set(types(plan, "ffn_up") + types(plan, "attn_q")) == {"Q4_K"}
    assert types(plan, "output.weight") == ["Q6_K"] + ["Q4_K"] * 16  # attn_output too


def test_eighths_and_sixteenths_are_rounded_down() -> None:
    for layers, eighth, sixteenth in ((7, 0, 0), (15, 1, 0), (16, 2, 1), (33, 4, 2)):
        model = small(num_hidden_layers=layers)
        assert types(outline(model, "q4_k_s"), "ffn_down").count("Q5_K") == eighth
        assert types(outline(model, "q3_k_m"), "ffn_down").count("Q5_K") == sixteenth


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 4}, "Q3_K"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4}, "Q3_K"),
        ({"num_attention_heads": 8, "num_key_value_heads": 2}, "Q4_K"),
        ({"num_attention_heads": 8, "num_key_value_heads": 1}, "Q4_K"),
        # 80 layers with any grouped-query attention are taken for Llama 2 70B.
        ({"num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": 80}, "Q3_K"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 80}, "Q5_K"),
        ({"num_attention_heads": 8, "num_key_value_heads": 1, "num_hidden_layers": 80}, "Q5_K"),
        ({"num_attention_heads": 8, "num_key_value_heads": 1, "num_hidden_layers": 88}, "Q4_K"),
    ],
)
def test_attn_v_knows_grouped_query_attention(config: dict[str, Any], expected: str) -> None:
    assert set(types(outline(small(**config), "q2_k"), "attn_v")) == {expected}


@pytest.mark.parametrize(("experts", "expected"), [(4, "Q4_K"), (8, "Q8_0"), (16, "Q4_K")])
def test_eight_experts_get_better_attention(experts: int, expected: str) -> None:
    plan = outline(small("mixtral", num_local_experts=experts), "q4_k_s")
    assert types(plan, "attn_k.")[-1] == types(plan, "attn_v")[-1] == expected
    assert types(plan, "attn_output")[-1] == ("Q5_K" if experts == 8 else "Q4_K")
    assert set(types(plan, "ffn_gate_exps") + types(plan, "attn_q.")) == {"Q4_K"}


@pytest.mark.parametrize(("experts", "expected"), [(4, "Q5_K"), (8, "Q8_0")])
def test_eight_experts_in_80_layers_are_no_70b(experts: int, expected: str) -> None:
    model = small("mixtral", num_local_experts=experts, num_hidden_layers=80)
    assert types(outline(model, "q2_k"), "attn_v") == [expected] * 80


@pytest.mark.parametrize(
    ("experts", "expected"), [(3, "Q2_K"), (4, "Q4_K"), (8, "Q4_K"), (16, "Q4_K")]
)
def test_four_experts_suffice_below_3_bits(experts: int, expected: str) -> None:
    model = model_of("mixtral", num_local_experts=experts)
    assert set(types(outline(model, "iq2_xs"), "attn_v")) == {expected}


def test_an_imatrix_changes_some_types() -> None:
    def ffn_down(quant: str, has_imatrix: bool) -> str:
        return types(outline(small(), quant, has_imatrix=has_imatrix), "ffn_down")[0]

    for quant, without, given in (
        ("q4_0", "Q4_0", "Q4_1"),
        ("q5_0", "Q5_0", "Q5_1"),
        ("iq4_xs", "Q5_K", "IQ4_XS"),
        ("iq4_nl", "Q5_K", "IQ4_NL"),
        ("iq3_xxs", "Q4_K", "IQ3_XXS"),
        ("q4_k_m", "Q6_K", "Q6_K"),
    ):
        assert (ffn_down(quant, False), ffn_down(quant, True)) == (without, given)
    model = small(num_key_value_heads=4)
    for has_imatrix, expected in ((False, "IQ3_S"), (True, "IQ3_XXS")):
        plan = outline(model, "iq3_xxs", has_imatrix=has_imatrix)
        assert set(types(plan, "attn_v")) == {expected}


def test_tied_embeddings_get_the_outputs_type() -> None:
    for quant, own, tied in (("q4_k_m", "Q4_K", "Q6_K"), ("iq2_xs", "Q2_K", "Q5_K")):
        assert types(outline(small(), quant), "token_embd") == [own]
        assert types(outline(small(tie_word_embeddings=True), quant), "token_embd") == [tied]


@pytest.mark.parametrize(
    ("quant", "of_32", "of_8"),
    [
        ("q8_0", "Q8_0", "F16"),
        ("q6_k", "Q8_0", "F16"),
        ("q5_k_s", "Q5_1", "F16"),
        ("q5_1", "Q5_1", "F16"),
        ("q4_k_s", "Q5_0", "F16"),
        ("q3_k_s", "Q4_0", "F16"),
        ("q2_k_s", "Q4_0", "F16"),
        ("iq4_xs", "IQ4_NL", "F16"),
        ("iq4_nl", "IQ4_NL", "F16"),
        ("iq3_s", "IQ4_NL", "F16"),
        ("iq2_m", "IQ4_NL", "F16"),
        ("iq1_s", "IQ4_NL", "F16"),
        ("f16", "F16", "F16"),
        ("bf16", "BF16", "BF16"),
    ],
)
def test_fallbacks_of_short_rows(quant: str, of_32: str, of_8: str) -> None:
    for hidden, expected in ((320, of_32), (72, of_8)):
        model = small(hidden_size=hidden, num_attention_heads=2, num_key_value_heads=2)
        assert set(types(outline(model, quant), "ffn_up")) == {expected}


def test_fallbacks_of_the_output() -> None:
    """Q8_0 where rows are no blocks of the quant's own encoding; else Q6_K, which falls back."""
    for hidden, quant, expected in (
        (320, "q4_k_m", "Q8_0"),
        (320, "iq2_xs", "Q8_0"),
        (320, "q4_0", "Q8_0"),
        (72, "q4_0", "F16"),
        (512, "q4_0", "Q6_K"),
        (512, "iq2_xs", "Q5_K"),
        (512, "q8_0", "Q8_0"),
    ):
        model = small(hidden_size=hidden, num_attention_heads=2, num_key_value_heads=2)
        assert types(outline(model, quant), "output.weight")[0] == expected


# --- overrides -------------------------------------------------------------------------------


def test_overrides_search_in_names_and_the_first_match_wins() -> None:
    plan = outline(small(), "q4_0", "BLK.0.Attn_V=f16", r"attn_[kv]\.=Q8_0", "attn=q5_1")
    assert types(plan, "attn_v") == ["F16"] + ["Q8_0"] * 7
    assert types(plan, "attn_k") == ["Q8_0"] * 8
    assert types(plan, "attn_q") == ["Q5_1"] * 8
    assert types(plan, "attn_norm") == ["F32"] * 8
    assert types(plan, "ffn_up") == ["Q4_0"] * 8


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        (r"blk\.[[:digit:]]\.attn_v", range(8)),
        (r"blk\.[[:digit:]6-9]\.attn_v", range(8)),
        (r"blk\.[^[:digit:]]\.attn_v", ()),
        (r"blk[[:punct:]]+[0-3][[:punct:]]+attn[^[:alnum:]]v", range(4)),
        (r"[[:alpha:]]+\.[[:xdigit:]]\.attn_v", range(8)),
    ],
)
def test_posix_classes_are_those_of_llama_quantize(pattern: str, layers: Sequence[int]) -> None:
    names = [f"blk.{layer}.attn_v.weight" for layer in range(8)]
    override = parse_override(f"{pattern}=q8_0")
    found = [int(name[4]) for name in names if override.pattern.search(name)]
    assert found == list(layers)


def test_overridden_tensors_are_not_counted() -> None:
    """Q3_K_M gives more bits to the first two attn_v that its rules see."""
    assert types(outline(small(), "q3_k_m"), "attn_v") == ["Q5_K"] * 2 + ["Q4_K"] * 6
    plan = outline(small(), "q3_k_m", r"blk\.[0-2]\.attn_v=q8_0")
    assert types(plan, "attn_v") == ["Q8_0"] * 3 + ["Q5_K"] * 2 + ["Q4_K"] * 3


def test_an_override_that_does_not_fit_falls_back_too() -> None:
    model = small(hidden_size=320, num_attention_heads=5)
    assert set(types(outline(model, "q8_0", "ffn_up=q4_k"), "ffn_up")) == {"Q5_0"}


def test_floats_ignore_overrides_as_llama_quantize_does() -> None:
    assert set(types(outline(small(), "bf16", "ffn_up=q4_k"), "ffn_up")) == {"BF16"}


def test_an_override_that_matches_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match=r"--tensor-type 'attn_w' matches no tensor; .*--dry-run"):
        outline(small(), "q4_0", "attn_w=q8_0")


@pytest.mark.parametrize(
    "text", ["attn_v", "=q8_0", "attn_v=", "attn_v=q9_0", "", "=", "attn_v=q8_k", "attn_v=i8"]
)
def test_overrides_of_no_sense_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match=re.escape(repr(text)) + " must be PATTERN=TYPE"):
        parse_override(text)


def test_a_pattern_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(PlanError, match=r"'\(' is not a regular expression"):
        parse_override("(=q8_0")


# --- importance matrices ---------------------------------------------------------------------


def imatrix_of(model: Decoder, **changes: Any) -> Imatrix:
    """Ones for every matrix but the embeddings; ``changes`` replace entries, None removes one."""
    entries: dict[str, Any] = {
        target.name: np.ones(target.n_elements // target.shape[-2], np.float32)
        for target in model.targets
        if len(target.shape) > 1 and target.role not in ("token_embd", "output")
    }
    entries |= changes
    kept = {name: values for name, values in entries.items() if values is not None}
    return Imatrix(Path("some.gguf"), "", kept, 1, ("text",))


def needing_imatrix(model: Decoder) -> set[str]:
    needing = set()
    for name, quant in all_quants().items():
        try:
            make_plan(model, quant)
        except ImatrixError:
            needing.add(name)
        except PlanError:
            assert name == "q1_0"  # of which there is nothing for rows of other than 128
    return needing


def test_quants_below_3_bits_need_an_imatrix() -> None:
    tiny = {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m"}
    for model in (small(), model_of("mixtral")):
        assert needing_imatrix(model) == tiny | {"iq3_xxs", "iq3_xs", "q2_k_s"}
    # Rows that fall back to blocks of 32 need none.
    assert needing_imatrix(small(hidden_size=320, intermediate_size=96)) == set()


def test_the_refusal_says_what_to_do() -> None:
    with pytest.raises(ImatrixError) as caught:
        make_plan(small(), all_quants()["iq2_m"])
    assert str(caught.value) == (
        "iq2_m needs an importance matrix: without one blk.0.attn_k.weight as IQ2_S would be "
        "garbage. Make one with --imatrix auto, or pass one with --imatrix FILE; or choose q2_k or "
        "larger."
    )


def test_an_imatrix_must_have_what_a_tensor_needs() -> None:
    model = small()
    plan = make_plan(model, all_quants()["iq2_m"], imatrix_of(model))
    assert plan == outline(model, "iq2_m", has_imatrix=True)
    lacking = imatrix_of(model, **{"blk.3.ffn_up.weight": None})
    with pytest.raises(
        ImatrixError, match=r"some.gguf has no entry for blk.3.ffn_up.weight, .*IQ2_S"
    ):
        make_plan(model, all_quants()["iq2_m"], lacking)
    make_plan(model, all_quants()["q4_k_m"], lacking)


def test_an_imatrix_of_another_model_is_refused() -> None:
    model, other = small(), small(hidden_size=512)
    with pytest.raises(ImatrixError, match=r"256.* needs 512: it was made for another model"):
        make_plan(other, all_quants()["q4_k_m"], imatrix_of(model))
    experts = model_of("mixtral", num_local_experts=4)
    with pytest.raises(ImatrixError, match="it was made for another model"):
        make_plan(model_of("mixtral"), all_quants()["q4_k_m"], imatrix_of(experts))


def test_embeddings_may_have_entries_of_any_size() -> None:
    model = small()
    strange = imatrix_of(model, **{"token_embd.weight": np.ones(7, np.float32)})
    make_plan(model, all_quants()["q4_k_m"], strange)


@pytest.mark.parametrize("kind", ["iq2_xxs", "iq2_xs", "iq1_s"])
@pytest.mark.parametrize("pattern", ["token_embd", "^output.weight"])
def test_kernels_that_cannot_go_without_an_imatrix_get_one(pattern: str, kind: str) -> None:
    model, quant = small(), all_quants()["q4_0"]
    recipe = recipe_of(quant, EncodingOptions(tensor_type=(f"{pattern}={kind}",)))
    for imatrix in (None, imatrix_of(model)):
        with pytest.raises(ImatrixError, match=kind.upper()):
            make_plan(model, quant, imatrix, recipe)


# --- names of quants -------------------------------------------------------------------------


def names(*wanted: str) -> list[str]:
    return [quant.name for quant in find_quants(wanted)]


def test_quants_come_best_first_and_once() -> None:
    assert names("q2_k", "Q8_0", "q8_0", "f16") == ["f16", "q8_0", "q2_k"]
    assert names() == []


def test_a_list_with_commas_is_several_quants() -> None:
    assert names("q4_k_m,q8_0") == names("q4_k_m", "q8_0")
    assert names("q4_k_m, gguf-all,", "bnb-nf4") == names("gguf-all", "bnb-nf4")
    for nothing in ("", ",", " "):
        with pytest.raises(UnknownQuantError):
            find_quants([nothing])


def test_the_usual_ladder() -> None:
    ladder = ["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"]
    assert names("ladder") == names("gguf-all") == names("GGUF_ALL", "q6_k") == ladder


def test_shorthands() -> None:
    assert names("q4_k", "Q5_K", "q3_k") == ["q5_k_m", "q4_k_m", "q3_k_m"]
    assert names(" Q4-K-M ") == ["q4_k_m"]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("q4_k_n", "q4_k_m"), ("q4km", "q4_k_m"), ("iq4xs", "iq4_xs"), ("publsh", "publish")],
)
def test_near_misses_are_suggested(wrong: str, right: str) -> None:
    with pytest.raises(UnknownQuantError, match=f"no quant '{wrong}'; did you mean {right}?"):
        find_quants([wrong])


def test_nothing_near_is_no_suggestion() -> None:
    with pytest.raises(UnknownQuantError, match="no quant 'awq'; quantkit quants lists them"):
        find_quants(["awq"])


# --- what the checkpoint must hold -----------------------------------------------------------


def tensors_of(model: Decoder) -> dict[str, SourceTensor]:
    file = Path("model.safetensors")
    return {
        name: SourceTensor(name, "BF16", shape, file, 0, int(np.prod(shape)) * FLOAT_BYTES["BF16"])
        for name, shape in model.sources.items()
    }


def refusal(model: Decoder, tensors: Mapping[str, SourceTensor]) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_sources(model, tensors)
    return str(caught.value)


def test_a_whole_checkpoint_is_accepted_with_old_buffers() -> None:
    model = small()
    tensors = tensors_of(model)
    check_sources(model, tensors)
    some = tensors["model.norm.weight"]
    check_sources(model, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": some})


def test_missing_tensors_are_named() -> None:
    model = model_of("mixtral")
    tensors = tensors_of(model)
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    assert refusal(model, tensors).startswith(
        "The checkpoint lacks model.layers.1.self_attn.k_proj.weight; download it again"
    )
    some = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    assert re.search(r"lacks (\S+, ){2}\S+ and 46 more tensors;", refusal(model, some))


def test_unexpected_tensors_are_named() -> None:
    model = small()
    tensors = tensors_of(model)
    tensors["model.layers.8.mlp.up_proj.weight"] = tensors["model.norm.weight"]
    assert refusal(model, tensors) == (
        "The checkpoint holds model.layers.8.mlp.up_proj.weight, which a mistral model does not "
        "have; check that config.json belongs to these weights."
    )


@pytest.mark.parametrize("left", ["lora_A.weight", "base_layer.weight", "lora_B.default.weight"])
def test_an_adapter_that_is_not_merged_is_named(left: str) -> None:
    model = small()
    tensors = tensors_of(model)
    weight = "model.layers.0.self_attn.q_proj.weight"
    if left.startswith("base_layer"):
        tensors[weight.replace("weight", left)] = tensors.pop(weight)
    else:
        tensors[weight.replace("weight", left)] = tensors["model.norm.weight"]
    said = refusal(model, tensors)
    assert f"q_proj.{left}, of an adapter (LoRA) that is not merged into its weights;" in said


def test_other_shapes_are_named() -> None:
    model, other = small(), small(intermediate_size=256)
    assert refusal(model, tensors_of(other)) == (
        "model.layers.0.mlp.gate_proj.weight in model.safetensors has shape 256 x 256, but "
        "config.json asks for 512 x 256; they are of different models."
    )


@pytest.mark.parametrize("tied", [None, False])
def test_an_absent_output_is_told_how_to_be_tied(tied: bool | None) -> None:
    model = small(tie_word_embeddings=tied)
    tensors = tensors_of(model)
    del tensors["lm_head.weight"]
    assert 'set "tie_word_embeddings": true' in refusal(model, tensors)


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_that_grew_is_no_other_model(tied: bool) -> None:
    model, padded = (small(tie_word_embeddings=tied, vocab_size=size) for size in (384, 384 + 64))
    message = refusal(model, tensors_of(padded))
    assert message.startswith("config.json says vocab_size = 384, but the embedding has 448 rows")
    assert "set vocab_size to 448" in message
