"""A recipe's file has the bytes that the search counted, within the budget, down to a step."""

import resource
import time
from dataclasses import replace

import pytest

from quantkit.core.errors import PlanError
from quantkit.families.model import Facts, Model
from quantkit.recipes.file import apply_recipe, to_document
from quantkit.recipes.find import RecipeSearch
from quantkit.recipes.losses import Measured
from tests.planning.large_models import LARGE_MODELS
from tests.recipes.models import layout_of, losses_of, metadata_of, model_of, search_of, stored_as

ODD = model_of(
    ("token_embd.weight", (100, 256)),
    ("output_norm.weight", (256,)),
    ("output.weight", (100, 256)),
    ("blk.0.attn_norm.weight", (256,)),
    ("blk.0.attn_q.weight", (256, 256)),
    ("blk.0.attn_v.weight", (7, 256)),
    ("blk.0.ffn_down.weight", (256, 96)),  # rows for Q4_0 and IQ4_NL
    ("blk.0.ffn_up.weight", (96, 256)),
    ("blk.1.attn_q.weight", (256, 256)),
    ("blk.1.ffn_down.weight", (256, 100)),  # rows for nothing but floats
    ("blk.1.ffn_gate_inp.weight", (8, 256)),
)
MODELS: dict[str, Model] = {"odd": ODD, "8x22B": LARGE_MODELS["Mixtral-8x22B"]}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_file_is_what_was_counted(name: str, weighted: bool) -> None:
    model = MODELS[name]
    search = search_of(model, weighted=weighted)
    for share in (0, 0.01, 0.1, 0.3, 0.7, 0.99, 1):
        budget = search.smallest + int(share * (search.largest - search.smallest))
        recipe = search.within(budget)
        layout = layout_of(recipe, model)
        # What an importance matrix says of itself is not in this file, and was counted.
        n_bytes = layout.n_bytes + (512 if weighted else 0)
        assert n_bytes <= budget
        steps = [
            after.n_bytes - now.n_bytes
            for unit, kind in zip(search.units, recipe.types.values(), strict=True)
            for now in unit
            for after in unit
            if now.encoding == kind and after.n_bytes > now.n_bytes and after.loss < now.loss
        ]
        assert budget - n_bytes < min(steps, default=1)


def test_bits_are_never_more_than_asked_for() -> None:
    for model in MODELS.values():
        search = search_of(model)
        for bits in (5.9, 6.0, 8.5):
            plan = layout_of(search.at_bits(bits), model).plan
            assert bits * 0.97 < plan.bits_per_weight <= bits


def test_a_budget_out_of_range_is_refused() -> None:
    search = search_of(ODD)
    assert layout_of(search.within(search.smallest), ODD).n_bytes == search.smallest
    assert layout_of(search.within(search.largest), ODD).n_bytes == search.largest
    with pytest.raises(PlanError, match=r"^The smallest file .* give more, an importance matrix"):
        search.within(search.smallest - 1)
    with pytest.raises(PlanError, match=r"nothing to search, so build bf16 or q8_0\.$"):
        search.within(search.largest + 1)


def test_mixtral_8x22b_takes_seconds_and_little_memory() -> None:
    """Given sensitivities: below 5 s and 500 MB, of which the interpreter has some."""
    model = LARGE_MODELS["Mixtral-8x22B"]
    losses, metadata = losses_of(model), metadata_of(model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()  # time: bounded from above, and far away
    search = RecipeSearch(model, metadata, losses)
    recipe = search.within(60 * 10**9)
    assert time.process_time() - begun < 5  # time: it takes a twentieth
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
    assert to_document(recipe) == to_document(
        RecipeSearch(model, metadata, losses).within(60 * 10**9)
    )
    assert 0 <= 60 * 10**9 - layout_of(recipe, model).n_bytes < 10**6


def test_what_costs_more_gets_more_bits() -> None:
    losses = losses_of(ODD)
    loud = replace(losses, sensitivities={**losses.sensitivities, "blk.1.attn_q.weight": 1000.0})
    search = RecipeSearch(ODD, metadata_of(ODD), loud)
    recipe = search.within((search.smallest + search.largest) // 2)
    assert recipe.types["blk.1.attn_q.weight"] in ("Q8_0", "BF16")
    assert recipe.types["blk.1.attn_q.weight"] != recipe.types["blk.0.attn_q.weight"]
    assert search.loss_of(recipe) < search.loss_of(search.within(search.smallest))


def test_a_tensor_that_lost_nothing_gets_bits_nevertheless() -> None:
    losses = losses_of(ODD)
    silent = replace(losses, sensitivities=dict.fromkeys(losses.sensitivities, 0.0))
    search = RecipeSearch(ODD, metadata_of(ODD), silent)
    assert layout_of(search.within(search.largest), ODD).n_bytes == search.largest


def test_a_tensor_that_was_not_measured_is_named() -> None:
    with pytest.raises(PlanError, match=r"^Nothing was measured of "):
        RecipeSearch(ODD, metadata_of(ODD), Measured("llama", {"output.weight": 1.0}))


def test_blocks_of_the_source_are_kept() -> None:
    model = stored_as(ODD, ["blk.0.ffn_up.weight"], "MXFP4")
    search = search_of(model)
    recipe = search.within((search.smallest + search.largest) // 2)
    assert recipe.types["blk.0.ffn_up.weight"] == "MXFP4"
    assert layout_of(recipe, model).plan.requantized is None


def test_the_base_is_what_most_bytes_are_in() -> None:
    model = LARGE_MODELS["Mixtral-8x22B"]
    search = search_of(model)
    assert search.within(search.smallest).base == "q2_k"
    assert (
        search_of(model, unquantized=False).within(search_of(model, unquantized=False).largest).base
        == "q8_0"
    )
    assert search.within(search.largest).base == "q8_0"  # nothing is in blocks
    quant, chosen = apply_recipe(search.within(search.smallest), model)
    assert (quant.file_type, chosen.mixture, quant.mixture) == (10, "q2_k", "q2_k")
    plan = layout_of(search.within(search.smallest), model).plan
    assert quant.name == quant.in_file_names == f"{plan.bits_per_weight:.2f}bpw"


def test_experts_of_old_files_are_units_of_their_own() -> None:
    names = [(f"blk.0.ffn_up.{expert}.weight", (256, 256)) for expert in range(4)]
    model = model_of(("token_embd.weight", (32, 256)), *names, facts=Facts(1, n_experts=4))
    search = search_of(model)
    recipe = search.within((search.smallest + search.largest) // 2)
    assert set(recipe.types) == {"token_embd.weight", *(name for name, _ in names)}
