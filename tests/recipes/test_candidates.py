"""What each tensor may be stored as: floors, rows, importance."""

import pytest

from quantkit.core.errors import PlanError
from quantkit.encodings.encoding import encodings
from quantkit.families.model import Facts, Model
from quantkit.planning.llama_quantize import needs_imatrix
from quantkit.planning.quants import all_quants
from quantkit.planning.recipe import Recipe
from quantkit.recipes.assumed import normal_errors
from quantkit.recipes.candidates import all_floors, known_candidates, offer, quantizable
from tests.recipes.models import model_of

TENSORS = (
    ("token_embd.weight", (64, 256)),
    ("output.weight", (64, 256)),
    ("blk.0.attn_k.weight", (64, 256)),
    ("blk.0.ffn_up_exps.weight", (4, 64, 256)),
    ("blk.0.ffn_up_shexp.weight", (64, 256)),
    ("blk.0.ssm_ba.weight", (64, 256)),
    ("blk.0.ssm_out.weight", (64, 256)),
    ("blk.0.ffn_down.weight", (64, 96)),
    ("blk.0.ffn_gate_inp.weight", (4, 256)),
)
MOE, DENSE = Facts(1, n_experts=4), Facts(1)


def offered(
    model: Model, *, weighted: bool = False, lifted: tuple[str, ...] = ()
) -> dict[str, list[str]]:
    names = {t.name for t in model.targets} if weighted else set()
    return {
        one.target.name: [kind.name for kind in one.encodings]
        for one in offer(model, names, lifted=lifted)
    }


def test_floors_hold_where_they_are_for() -> None:
    found = offered(model_of(*TENSORS, facts=MOE))
    large = ["Q5_K", "Q6_K", "Q8_0", "BF16"]
    free = ["Q2_K", "IQ3_S", "Q3_K", "IQ4_XS", "Q4_K", *large]
    assert found == {
        "token_embd.weight": free,
        "output.weight": large,
        "blk.0.attn_k.weight": large,
        "blk.0.ffn_up_exps.weight": free,
        "blk.0.ffn_up_shexp.weight": free[4:],
        "blk.0.ssm_ba.weight": ["Q8_0", "BF16"],
        "blk.0.ssm_out.weight": free,
        "blk.0.ffn_down.weight": ["Q4_0", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0", "BF16"],
    }
    dense = offered(model_of(*TENSORS, facts=DENSE))
    assert dense["blk.0.attn_k.weight"] == free
    tied = offered(model_of(TENSORS[0], TENSORS[2]))
    assert tied["token_embd.weight"] == large


def test_every_floor_can_be_lifted() -> None:
    model = model_of(*TENSORS, facts=MOE)
    for name, floor in all_floors().items():
        held = offered(model if floor.models != "tied" else model_of(TENSORS[0]), lifted=())
        lifted = offered(model if floor.models != "tied" else model_of(TENSORS[0]), lifted=(name,))
        changed = {tensor for tensor in held if held[tensor] != lifted[tensor]}
        assert changed or floor.least.name == "Q2_K", name
        assert all(floor.holds(tensor) for tensor in changed)
        assert floor.source
    with pytest.raises(PlanError, match="There is no floor 'routers'"):
        offered(model, lifted=("routers",))


def test_nothing_that_needs_importance_goes_without() -> None:
    model = model_of(*TENSORS, facts=MOE)
    for target in quantizable(model):
        for name in offered(model)[target.name]:
            base = all_quants()["q2_k"]
            recipe = Recipe(base.name, base.encoding)
            assert not needs_imatrix(target, encodings()[name], recipe)
    weighted = offered(model, weighted=True)
    assert weighted["blk.0.ffn_up_exps.weight"][:3] == ["IQ2_XXS", "IQ2_XS", "IQ2_S"]


def test_what_is_allowed_may_leave_nothing() -> None:
    model = model_of(*TENSORS, facts=MOE)
    with pytest.raises(PlanError, match=r"left for output\.weight; allow larger ones"):
        offer(model, (), allowed={"Q4_K"}, unquantized=False)


def test_every_candidate_has_an_error_and_more_bits_have_less() -> None:
    errors = normal_errors()
    assert {kind.name for kind in known_candidates()} <= errors.keys()
    k_quants = [errors[name] for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16")]
    assert k_quants == sorted(k_quants, reverse=True)
