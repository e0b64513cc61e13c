"""What stands beside the recipe that is asked for."""

from dataclasses import replace

from quantkit.families.model import Facts
from quantkit.fitting.subject import Buildable, PlanOptions, Variant
from quantkit.recipes.candidates import all_floors
from quantkit.recipes.find import Freedom
from quantkit.recipes.losses import Measured
from quantkit.recipes.rivals import (
    BY_KIND,
    FIXED,
    HALF,
    SEARCHED,
    WITH_FLOORS,
    WITHOUT_FLOORS,
    candidate_of,
    distinct,
    nearest_mixture,
    ways_to_search,
)
from tests.recipes.models import losses_of, metadata_of, model_of, search_of

MODEL = model_of(
    ("token_embd.weight", (512, 256)),
    ("output.weight", (512, 256)),
    ("blk.0.attn_q.weight", (256, 256)),
    ("blk.0.attn_v.weight", (256, 256)),
    ("blk.0.ffn_down.weight", (256, 1024)),
    ("blk.0.ffn_up.weight", (1024, 256)),
    facts=Facts(1),
)
SOURCE = Buildable(MODEL, metadata_of(MODEL), 0, 0)
WISHES = PlanOptions((), None, None)


def test_each_way_differs_from_what_is_asked_for_in_one_respect() -> None:
    asked = Freedom()
    (first, losses, freedom), *others = ways_to_search(MODEL, None, asked)
    assert (first, freedom) == (SEARCHED, asked)
    assert [way for way, _, _ in others] == [WITHOUT_FLOORS, HALF]
    assert others[0][1] == losses
    assert others[1][2] == asked
    late = {name for name, floor in all_floors().items() if floor.shows_late}
    assert late == {"recurrent"}
    assert set(others[0][2].lifted) == all_floors().keys() - late


def test_floors_that_were_lifted_are_kept_by_another_way() -> None:
    _, (way, _, freedom), _ = ways_to_search(MODEL, None, Freedom(lifted=("output",)))
    assert (way, freedom.lifted) == (WITH_FLOORS, ())


def test_beside_measured_sensitivities_stand_those_by_kind() -> None:
    measured = Measured(
        "llama", {target.name: 1.0 for target in MODEL.targets}, {("output.weight", "Q2_K"): 0.5}
    )
    *_, (way, losses, _) = ways_to_search(MODEL, measured, Freedom())
    assert way == BY_KIND
    assert losses.sensitivities == losses_of(MODEL).sensitivities
    assert losses.errors == measured.errors


def test_half_trusted_sensitivities_lie_between_those_and_the_weights() -> None:
    (_, full, _), _, (_, half, _) = ways_to_search(MODEL, None, Freedom())
    sizes = {target.name: target.n_elements for target in MODEL.targets}

    def ratio(of: dict[str, float], a: str, b: str) -> float:
        return of[a] / of[b]

    a, b = "blk.0.attn_v.weight", "blk.0.ffn_down.weight"
    between = ratio(dict(half.sensitivities), a, b) ** 2
    whole = ratio(dict(full.sensitivities), a, b) * sizes[a] / sizes[b]
    assert abs(between / whole - 1) < 1e-9


def test_the_nearest_mixture_is_the_largest_that_fits() -> None:
    sizes: dict[str, int] = {}

    def look(variant: Variant) -> bool:
        sizes[variant.name] = variant.file_bytes
        return True

    nearest_mixture(SOURCE, WISHES, look, weighted=False)
    assert "q4_k_m" in sizes
    assert not sizes.keys() & {"q4_0", "q4_1", "q5_0", "q5_1", "bf16", "iq2_xs", "mxfp4_moe"}
    most = sizes["q4_k_m"]
    found = nearest_mixture(SOURCE, WISHES, lambda v: v.file_bytes <= most, weighted=False)
    assert found is not None
    assert found.way == FIXED
    assert sizes[found.quant.name] == max(n for n in sizes.values() if n <= most)


def test_a_mixture_keeps_to_what_is_allowed_and_free() -> None:
    def found(**more: object) -> str | None:
        one = nearest_mixture(SOURCE, WISHES, lambda _: True, weighted=False, **more)  # type: ignore[arg-type]
        return None if one is None else one.quant.name

    assert found() == "q8_0"
    assert found(taken={"q8_0"}) == "q6_k_l"
    assert found(allowed={"Q6_K", "Q8_0"}, taken={"q8_0", "q6_k_l"}) == "q6_k"
    assert found(allowed={"IQ3_S"}) is None
    with_importance = nearest_mixture(SOURCE, WISHES, lambda v: "iq2" in v.name, weighted=True)
    assert with_importance is not None


def test_what_chooses_the_same_stands_once() -> None:
    recipe = search_of(MODEL).at_bits(4.5)
    first = candidate_of(SEARCHED, recipe, MODEL)
    same = candidate_of(HALF, replace(recipe, basis="another"), MODEL)
    other = candidate_of(WITHOUT_FLOORS, search_of(MODEL).at_bits(5.0), MODEL)
    assert distinct([first, same, other]) == [first, other]
