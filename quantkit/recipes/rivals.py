"""The candidates for one budget: recipes that were searched in different ways, and a fixed mixture.

No search knows what a model does. So there are several, which differ in what they take for granted:
the losses, the floors, how far sensitivities are to be trusted. Beside them stands the mixture with
a name that somebody would have built otherwise.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from math import sqrt

from quantkit.core.errors import PlanError
from quantkit.families.model import Model
from quantkit.fitting.subject import Buildable, PlanOptions, Variant, variant_of
from quantkit.planning.plan import needs_importance, outline_plan
from quantkit.planning.quants import Quant, all_quants
from quantkit.planning.recipe import Recipe, recipe_of
from quantkit.recipes.assumed import assume
from quantkit.recipes.candidates import all_floors, quantizable
from quantkit.recipes.file import SearchedRecipe, apply_recipe
from quantkit.recipes.find import Freedom
from quantkit.recipes.losses import Measured

SEARCHED, FIXED = "searched", "fixed mixture"
WITHOUT_FLOORS, WITH_FLOORS = "searched, floors lifted", "searched, floors kept"
BY_KIND, HALF = "searched, sensitivities by kind", "searched, sensitivities half trusted"

# Mixtures that nobody would choose for quality: simple blocks, and what experts are published in.
_NO_RIVALS = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4"})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may be delivered: how it was come by, and what decides the types in it."""

    way: str
    quant: Quant
    recipe: Recipe


def candidate_of(way: str, recipe: SearchedRecipe, model: Model) -> Candidate:
    """A recipe that was searched as a candidate."""
    return Candidate(way, *apply_recipe(recipe, model))


def ways_to_search(
    model: Model, measured: Measured | None, freedom: Freedom
) -> Iterator[tuple[str, Measured, Freedom]]:
    """How to search: what is asked for first, then what differs from it in one respect.

    Args:
        model: of which.
        measured: losses that were measured of it; None for those that are assumed.
        freedom: what may be chosen from.

    """
    assumed = assume(quantizable(model), model.arch, model.facts)
    losses = measured or assumed
    yield SEARCHED, losses, freedom
    # Floors whose harm no short text shows are not for a measurement to lift.
    liftable = {name for name, floor in all_floors().items() if not floor.shows_late}
    if freedom.lifted:
        yield WITH_FLOORS, losses, replace(freedom, lifted=())
    else:
        yield WITHOUT_FLOORS, losses, replace(freedom, lifted=liftable)
    if measured is not None:
        yield BY_KIND, replace(losses, sensitivities=assumed.sensitivities), freedom
    else:
        yield HALF, _half_trusted(losses, model), freedom


def _half_trusted(losses: Measured, model: Model) -> Measured:
    """Losses whose sensitivities lie, in their logarithms, halfway to every weight being alike."""
    shares = {target.name: float(target.n_elements) for target in quantizable(model)}
    return replace(
        losses,
        sensitivities={
            name: sqrt(sensitivity * shares.get(name, 0.0))
            for name, sensitivity in losses.sensitivities.items()
        },
    )


def nearest_mixture(
    source: Buildable,
    wishes: PlanOptions,
    fits: Callable[[Variant], bool],
    *,
    weighted: bool,
    allowed: Collection[str] | None = None,
    taken: Collection[str] = (),
) -> Candidate | None:
    """The largest fixed mixture that fits; None where there is none.

    Simple blocks (q4_0 to q5_1) are none: at their sizes a K-quant is better.

    Args:
        source: what can be built.
        wishes: how it would be built.
        fits: whether one does.
        weighted: whether there is, or will be, an importance matrix.
        allowed: the block formats that may be in it, None for all.
        taken: names of quants that are built anyway, in a form of the user's.

    """
    best: tuple[int, Candidate] | None = None
    for quant in all_quants().values():
        encoding = quant.encoding
        if not encoding.is_block or encoding.name in _NO_RIVALS or quant.name in taken:
            continue
        if quant.trained_only:
            continue
        recipe = recipe_of(quant)
        try:
            plan = outline_plan(source.model, quant, weighted, recipe)
        except PlanError:
            continue  # llama-quantize cannot make this one of this model
        needed = needs_importance(plan, recipe)
        blocks = {t.encoding.name for t in plan.tensors if t.encoding.is_block}
        if (needed and not weighted) or not (allowed is None or blocks <= set(allowed)):
            continue
        variant = variant_of(plan, source, wishes, needed=needed)
        if fits(variant) and (best is None or variant.tensor_bytes > best[0]):
            best = variant.tensor_bytes, Candidate(FIXED, quant, recipe)
    return None if best is None else best[1]


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Candidates without those that choose what an earlier one chooses."""
    kept: list[Candidate] = []
    for candidate in candidates:
        types = candidate.recipe.types
        if not types or all(types != one.recipe.types for one in kept):
            kept.append(candidate)
    return kept
