"""Sets of quants by one name, and quants that are others but for output and embeddings."""

from collections.abc import Sequence

import pytest

from quantkit.checkpoint.gguf import Header, parse_header
from quantkit.core.errors import ImatrixError, PlanError
from quantkit.families.model import Decoder
from quantkit.formats.gguf.layout import lay_out
from quantkit.formats.gguf.metadata import ModelMetadata, bare_entries
from quantkit.planning.llama_quantize import HEEDS_IMATRIX
from quantkit.planning.plan import Plan, make_plans, outline_plan
from quantkit.planning.quants import all_quants, find_quants, known_groups
from quantkit.planning.recipe import EncodingOptions, recipe_of
from quantkit.planning.recognize import quant_of
from quantkit.verification.quality import find_cosine_limit, find_limits
from tests.native_tools import VARIANTS
from tests.planning.large_models import LARGE_MODELS, model_of

PUBLISHED = """
    q8_0 q6_k_l q6_k q5_k_m q5_k_s q4_k_m q4_k_s q4_0 q4_1 iq4_nl iq4_xs q3_k_xl q3_k_l q3_k_m
    q3_k_s iq3_m iq3_xs iq3_xxs q2_k_l q2_k iq2_m iq2_s iq2_xs iq2_xxs
"""
ENDS = {"output.weight", "token_embd.weight"}


def types(plan: Plan) -> dict[str, str]:
    return {tensor.target.name: tensor.encoding.name for tensor in plan.tensors}


def outline(model: Decoder, quant: str) -> dict[str, str]:
    return types(outline_plan(model, all_quants()[quant], has_imatrix=True))


# --- sets ------------------------------------------------------------------------------------


def test_what_publishers_ship() -> None:
    assert sorted(quant.name for quant in find_quants(["publish"])) == sorted(PUBLISHED.split())


def test_all_is_what_serves_any_model() -> None:
    quants = all_quants()
    rest = set(quants) - {quant.name for quant in find_quants(["all"])}
    trained = {name for name, quant in quants.items() if quant.trained_only}
    assert rest == trained | {"mxfp4_moe"}


def test_no_set_has_a_quants_name() -> None:
    assert not set(known_groups()) & set(all_quants())


def test_every_quant_of_a_set_that_needs_an_imatrix_is_named_at_once() -> None:
    wanted = [(quant, recipe_of(quant)) for quant in find_quants(["publish"])]
    with pytest.raises(ImatrixError) as caught:
        make_plans(model_of("mistral"), wanted)
    assert str(caught.value) == (
        "iq3_xs, iq3_xxs, iq2_m, iq2_s, iq2_xs and iq2_xxs need an importance matrix: without one "
        "blk.0.attn_k.weight as IQ3_XXS would be garbage. Make one with --imatrix auto, or pass "
        "one with --imatrix FILE; or choose q2_k or larger."
    )


# --- variants --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Mixtral-8x22B", "Llama-3-70B"])
@pytest.mark.parametrize(("variant", "base"), VARIANTS.items())
def test_a_variant_is_its_base_but_for_both_ends(variant: str, base: str, name: str) -> None:
    ours, bases = (outline(LARGE_MODELS[name], quant) for quant in (variant, base))
    assert {key for key in ours if ours[key] != bases[key]} == ENDS
    assert {ours[key] for key in ENDS} == {"Q8_0"}
    assert all_quants()[variant].file_type == all_quants()[base].file_type


def test_options_come_before_what_a_variant_says() -> None:
    model, quant = LARGE_MODELS["Mistral-22B"], all_quants()["q6_k_l"]
    recipe = recipe_of(quant, EncodingOptions("fast", "ggml", ("attn_q=q4_0",), "f16"))
    found = types(outline_plan(model, quant, has_imatrix=False, recipe=recipe))
    assert (found["output.weight"], found["token_embd.weight"]) == ("F16", "Q8_0")
    assert found["blk.0.attn_q.weight"] == "Q4_0"


@pytest.mark.parametrize(
    ("name", "remarks"),
    [
        # Its rows are no blocks of Q6_K's, and llama-quantize falls back to Q8_0.
        ("SmolLM2-135M", ("q6_k_l stores every tensor of this model as q6_k does.",)),
        ("Mistral-22B", ()),
    ],
)
def test_a_variant_that_is_its_base_is_said_to_be(name: str, remarks: tuple[str, ...]) -> None:
    quant = all_quants()["q6_k_l"]
    (plan,) = make_plans(LARGE_MODELS[name], [(quant, recipe_of(quant))])
    assert plan.remarks == remarks


def test_rows_that_no_variant_can_have_are_refused() -> None:
    model = model_of("mistral", hidden_size=72, num_attention_heads=2, num_key_value_heads=2)
    with pytest.raises(PlanError) as caught:
        outline(model, "q6_k_l")
    assert str(caught.value) == (
        "q6_k_l cannot be built: output.weight cannot be stored as Q8_0: its rows of 72 are no "
        "multiple of 32; choose another type for it. Or ask for q6_k."
    )
    assert outline(model, "q6_k")["output.weight"] == "F16"


def test_a_variant_is_judged_as_its_base() -> None:
    for variant, base in VARIANTS.items():
        for size in (10**6, 10**9):
            assert find_limits(base, size) is not None
            assert find_limits(variant, size) == find_limits(base, size)
        assert find_cosine_limit(variant) == find_cosine_limit(base)


# --- what a header tells -----------------------------------------------------------------------


def headers_of(model: Decoder, quant: str, shard_size: int | None = None) -> Sequence[Header]:
    plan = outline_plan(model, all_quants()[quant], has_imatrix=True)
    layout = lay_out(plan, ModelMetadata("some", bare_entries(model)), shard_size=shard_size)
    headers = [parse_header(file.header, file.n_bytes) for file in layout.files]
    return [header for header in headers if header is not None]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quant", all_quants())
def test_every_quant_is_known_by_its_header(quant: str, tied: bool) -> None:
    model = model_of("mistral", tie_word_embeddings=tied, num_key_value_heads=1)
    found = quant_of(headers_of(model, quant))
    assert found is not None
    assert found.name == quant


def test_a_variant_is_known_by_the_headers_of_its_shards() -> None:
    model = model_of("mistral", num_hidden_layers=4)
    shards = headers_of(model, "q3_k_xl", 400_000)
    assert len(shards) > 2
    found = quant_of(shards)
    assert found is all_quants()["q3_k_xl"]


def test_one_end_makes_no_variant() -> None:
    model, quant = model_of("mistral"), all_quants()["q6_k"]
    for options in (
        EncodingOptions(output_tensor_type="q8_0"),
        EncodingOptions(token_embedding_type="q8_0"),  # noqa: S106 - no password
    ):
        plan = outline_plan(model, quant, False, recipe_of(quant, options))
        (file,) = lay_out(plan, ModelMetadata("some", bare_entries(model))).files
        header = parse_header(file.header, file.n_bytes)
        assert header is not None
        assert quant_of([header]) is quant


def test_what_the_base_stores_so_itself_is_the_base() -> None:
    headers = headers_of(LARGE_MODELS["SmolLM2-135M"], "q6_k_l")
    assert quant_of(headers) is all_quants()["q6_k"]


def test_an_unknown_file_type_is_no_quant() -> None:
    assert quant_of([Header({"general.file_type": 999}, (), 0)]) is None
    assert quant_of([Header({}, (), 0)]) is None


# --- importance ------------------------------------------------------------------------------


def test_which_mixtures_heed_an_importance_matrix() -> None:
    """The others are planned once, whether there is one or not."""
    heeding = {
        quant.mixture
        for model in (LARGE_MODELS["Mixtral-8x22B"], LARGE_MODELS["Mistral-22B"])
        for quant in all_quants().values()
        if outline_plan(model, quant, has_imatrix=True).tensors
        != outline_plan(model, quant, has_imatrix=False).tensors
    }
    assert heeding == HEEDS_IMATRIX
