"""What finds a recipe for a build, and what else might be delivered for the same budget."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantkit.core.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from quantkit.api.budget import BudgetOptions
    from quantkit.api.options import BuildOptions
    from quantkit.checkpoint.converter.wish import ConverterOptions
    from quantkit.checkpoint.imatrix import Imatrix
    from quantkit.families.model import Model
    from quantkit.fitting.subject import Buildable, PlanOptions, SizedModel
    from quantkit.formats.gguf.metadata import ModelMetadata
    from quantkit.planning.quants import Quant
    from quantkit.planning.recipe import Recipe
    from quantkit.recipes.file import SearchedRecipe
    from quantkit.recipes.rivals import Candidate


@dataclass(frozen=True, slots=True)
class Chooser:
    """What finds a recipe for a build: one that is kept in a file, or a search."""

    kept: "SearchedRecipe | None"
    budgeted: "BudgetOptions"
    name: str
    wish: "ConverterOptions"

    def __call__(
        self, model: "Model", metadata: "ModelMetadata", imatrix: "Imatrix | None"
    ) -> "tuple[Quant, Recipe]":
        """The recipe that is asked for."""
        from quantkit.recipes.file import apply_recipe

        if self.kept is not None:
            return apply_recipe(self.kept, model)
        source, wishes, look = self._asking(model, metadata, imatrix)
        weighted = imatrix is not None
        found, _ = self.budgeted.search(source, wishes, weighted=weighted, look=look)
        return apply_recipe(found.recipe, model)

    def candidates(
        self,
        model: "Model",
        metadata: "ModelMetadata",
        imatrix: "Imatrix | None",
        taken: "Collection[str]",
    ) -> "list[Candidate]":
        """What a search may deliver, what is asked for first."""
        source, wishes, look = self._asking(model, metadata, imatrix)
        weighted = imatrix is not None
        return self.budgeted.candidates(source, wishes, weighted=weighted, look=look, taken=taken)

    def _asking(
        self, model: "Model", metadata: "ModelMetadata", imatrix: "Imatrix | None"
    ) -> "tuple[Buildable, PlanOptions, Callable[[], SizedModel]]":
        from quantkit.fitting.subject import Buildable, PlanOptions, open_subject

        wishes = PlanOptions((), None, imatrix, self.wish)
        return Buildable(model, metadata, 0, 0), wishes, lambda: open_subject(self.name, wishes)


def plan_searched(options: "BuildOptions", name: str) -> Chooser | None:
    """What finds a recipe for a build: a file or a search, if one of them is asked for.

    The ``name`` is the model's, as `fit` opens it.

    Raises:
        PlanError: both or several are given, or the file is no recipe.

    """
    from quantkit.recipes.file import read_recipe

    file, budget = options.recipe, options.budget
    if file is None and not budget.is_given:
        return None
    if file is None:
        budget.require_one()
    elif budget.is_given:
        raise PlanError(
            "--recipe says the type of every tensor already; leave it or the budget out."
        )
    kept = read_recipe(file) if file is not None else None
    return Chooser(kept, budget, name, options.converter)
