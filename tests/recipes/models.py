"""Models to search recipes for, and their searches."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from quantkit.families.model import Facts, Model, Target
from quantkit.formats.gguf.layout import GGUFLayout, lay_out
from quantkit.formats.gguf.metadata import ModelMetadata, bare_entries
from quantkit.planning.plan import outline_plan
from quantkit.recipes.assumed import assume
from quantkit.recipes.candidates import quantizable
from quantkit.recipes.file import SearchedRecipe, apply_recipe
from quantkit.recipes.find import Freedom, RecipeSearch
from quantkit.recipes.losses import Measured


def metadata_of(model: Model) -> ModelMetadata:
    return ModelMetadata("Some-Model", bare_entries(model))


def losses_of(model: Model) -> Measured:
    return assume(quantizable(model), model.arch, model.facts)


def search_of(model: Model, **freedom: Any) -> RecipeSearch:
    return RecipeSearch(model, metadata_of(model), losses_of(model), freedom=Freedom(**freedom))


def layout_of(recipe: SearchedRecipe, model: Model) -> GGUFLayout:
    """What a build of a recipe would write."""
    quant, chosen = apply_recipe(recipe, model)
    return lay_out(outline_plan(model, quant, recipe.weighted, chosen), metadata_of(model))


_TWO_LAYERS = Facts(2)


def model_of(
    *shapes: tuple[str, tuple[int, ...]], stored: str = "BF16", facts: Facts = _TWO_LAYERS
) -> Model:
    """A model of these tensors alone."""
    targets = tuple(
        Target(name, name.split(".")[-2], shape, stored=stored if len(shape) > 1 else "F32")
        for name, shape in shapes
    )
    return Model(family="Some", arch="llama", sources={}, targets=targets, facts=facts, keys=())


def stored_as(model: Model, names: Sequence[str], kind: str) -> Model:
    """The same model with some tensors in blocks."""
    targets = tuple(replace(t, stored=kind) if t.name in names else t for t in model.targets)
    return replace(model, targets=targets)
