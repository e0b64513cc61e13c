"""What a search for a recipe is asked for, alike in the commands that search one."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.core.errors import PlanError
from quantkit.core.printable import quoted
from quantkit.core.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from quantkit.build.work import Choose
    from quantkit.checkpoint.converter.wish import Wish
    from quantkit.checkpoint.imatrix import Imatrix
    from quantkit.families.model import Model
    from quantkit.fit.hardware import Machine
    from quantkit.fit.subject import Buildable, Subject, Wishes
    from quantkit.formats.gguf.metadata import ModelMetadata
    from quantkit.plan.quants import Quant
    from quantkit.plan.recipe import Recipe
    from quantkit.recipes.find import RecipeSearch
    from quantkit.recipes.losses import Measured
    from quantkit.recipes.machine import Found

ALL = "all"  # instead of a floor's name
_USUAL_CONTEXT = 8192
_MOST_BITS = 32.0

BudgetOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="The most bytes of the file, such as 20GB.")
]
BitsOption = Annotated[
    float | None, typer.Option(metavar="BITS", help="The most bits per weight, such as 4.25.")
]
ForOption = Annotated[
    str | None,
    typer.Option("--for", metavar="MACHINE", help="What it runs on, such as '24GB + 32GB'."),
]
MeasuredOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Losses that were measured of this model.")
]
TypesOption = Annotated[
    list[str] | None,
    typer.Option("--types", metavar="TYPE,...", help="Choose from these types of blocks alone."),
]
NoFloorOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME|all", help="Lift a floor of docs/recipes.md; again for more."),
]


@dataclass(frozen=True, slots=True)
class SearchWish:
    """A budget in one of three forms, and what the search may choose from."""

    budget: str | None = None
    bpw: float | None = None
    machine: str | None = None
    context: int | None = None
    measured: Path | None = None
    types: tuple[str, ...] = ()
    no_floor: tuple[str, ...] = ()

    @property
    def is_given(self) -> bool:
        """Whether any budget is asked for."""
        return bool(self._given)

    @property
    def _given(self) -> list[str]:
        asked = (("--budget", self.budget), ("--bpw", self.bpw), ("--for", self.machine))
        return [option for option, value in asked if value is not None]

    def require_one(self) -> None:
        """Refuse no budget and several, and what makes no sense in one.

        Raises:
            PlanError: there is not one budget, or it is none.

        """
        if len(self._given) != 1:
            raise PlanError(
                "Give one of --budget SIZE, --bpw BITS and --for 'GPU + RAM': what the file is to "
                "fit."
            )
        if self.bpw is not None and not 0 < self.bpw <= _MOST_BITS:
            raise PlanError(f"--bpw {self.bpw:g} is no number of bits; give one such as 4.25.")
        if self.context is not None and self.machine is None:
            raise PlanError("--context goes with --for alone; leave it out.")

    def search(
        self,
        source: "Buildable",
        wishes: "Wishes",
        *,
        weighted: bool,
        look: "Callable[[], Subject]",
    ) -> "tuple[Found, Machine | None]":
        """The recipe that is asked for, and the machine that it is for, if one was named.

        Args:
            source: what can be built.
            wishes: how it would be built.
            weighted: whether there is, or will be, an importance matrix.
            look: opens the model as `fit` does, which llama.cpp is asked about.

        Raises:
            PlanError: nothing fits, or what is asked for makes no sense.

        """
        from quantkit.fit.probe import Settings, check_settings, probe
        from quantkit.recipes.machine import MachineSearch, find, parse_machine

        # A machine gets nothing that is larger than q8_0, which loses practically nothing.
        machine = parse_machine(self.machine) if self.machine is not None else None
        n_bytes = parse_size(self.budget) if self.budget is not None else None
        search = self.prepare(source, wishes, weighted=weighted, unquantized=machine is None)
        if machine is not None:
            shape = (subject := look()).shape
            settings = Settings(self.context or min(_USUAL_CONTEXT, shape.n_ctx_train))
            check_settings(shape, settings)
            curve = probe(subject, settings)
            return MachineSearch(search, source, wishes, curve, machine).best(), machine
        if n_bytes is not None:
            return find(search, search.within(n_bytes), source, wishes), None
        assert self.bpw is not None  # noqa: S101 - there is one budget
        return find(search, search.at_bits(self.bpw), source, wishes), None

    def prepare(
        self, source: "Buildable", wishes: "Wishes", *, weighted: bool, unquantized: bool
    ) -> "RecipeSearch":
        """The search over what may be chosen; ``unquantized``: whether weights may stay so.

        Raises:
            PlanError: what may be chosen makes no sense.

        """
        from quantkit.recipes.find import Freedom, RecipeSearch

        lifted, allowed = self._choice()
        return RecipeSearch(
            source.model,
            source.metadata,
            self._losses(source.model),
            imatrix=wishes.imatrix,
            vocabulary_bytes=source.vocabulary_bytes,
            freedom=Freedom(weighted, lifted, allowed, unquantized and allowed is None),
        )

    def _losses(self, model: "Model") -> "Measured":
        from quantkit.recipes.assumed import assume
        from quantkit.recipes.candidates import quantizable
        from quantkit.recipes.losses import read_measured

        if self.measured is None:
            return assume(quantizable(model), model.arch, model.facts)
        measured = read_measured(self.measured)
        if measured.arch != model.arch:
            raise PlanError(
                f"{self.measured} was measured of the architecture {quoted(measured.arch)}, and "
                f"this model is of {model.arch}; measure it, or leave --measured out."
            )
        return measured

    def _choice(self) -> tuple[frozenset[str], frozenset[str] | None]:
        """The floors that are lifted, and the types that are allowed."""
        from quantkit.recipes.candidates import all_floors, known_candidates

        lifted = frozenset(all_floors() if ALL in self.no_floor else self.no_floor)
        listed = (part.strip().upper() for text in self.types for part in text.split(","))
        names = frozenset(name for name in listed if name)
        known = [kind.name for kind in known_candidates()]
        if strange := sorted(names.difference(known)):
            raise PlanError(
                f"--types {quoted(strange[0].lower())} is no type that recipes choose from; they "
                f"are {', '.join(known).lower()}."
            )
        return lifted, names or None


def plan_searched(
    file: Path | None, budgeted: SearchWish, name: str, wish: "Wish"
) -> "Choose | None":
    """What finds a recipe for a build: a file or a search, if one of them is asked for.

    Args:
        file: a recipe.
        budgeted: what to search one within.
        name: the model, as `fit` opens it.
        wish: how llama.cpp's converter is asked.

    Raises:
        PlanError: both or several are given, or the file is no recipe.

    """
    from quantkit.recipes.file import apply_recipe, read_recipe

    if file is None and not budgeted.is_given:
        return None
    if file is None:
        budgeted.require_one()
    elif budgeted.is_given:
        raise PlanError(
            "--recipe says the type of every tensor already; leave it or the budget out."
        )
    kept = read_recipe(file) if file is not None else None

    def choose(
        model: "Model", metadata: "ModelMetadata", imatrix: "Imatrix | None"
    ) -> "tuple[Quant, Recipe]":
        from quantkit.fit.subject import Buildable, Wishes, open_subject

        if kept is not None:
            return apply_recipe(kept, model)
        wishes = Wishes((), None, imatrix, wish)
        found, _ = budgeted.search(
            Buildable(model, metadata, 0, 0),
            wishes,
            weighted=imatrix is not None,
            look=lambda: open_subject(name, wishes),
        )
        return apply_recipe(found.recipe, model)

    return choose


def numbers_of(found: "Found", machine: "Machine | None") -> dict[str, Any]:
    """A recipe that was found as JSON values, every size in bytes."""
    from quantkit.fit.verdict import describe

    variant, recipe, placement = found.variant, found.recipe, found.placement
    numbers: dict[str, Any] = {
        "name": variant.name,
        "file": variant.file_name,
        "file_bytes": variant.file_bytes,
        "file_bytes_label": "exact" if variant.file_is_exact else "modelled",
        "tensor_bytes": variant.tensor_bytes,
        "bits_per_weight": variant.bits_per_weight,
        "needs_imatrix": variant.needs_imatrix,
        "arch": recipe.arch,
        "base": recipe.base,
        "basis": recipe.basis,
        "loss": found.loss,
        "types": {span.text: kind for span, kind in recipe.spans},
    }
    if placement is not None and machine is not None:
        numbers["machine"] = machine.title
        numbers["verdict"] = describe(placement)
        numbers["mode"] = placement.mode
        numbers["n_gpu_layers"] = placement.n_gpu_layers
        numbers["n_cpu_moe"] = placement.n_cpu_moe
        numbers["share_used"] = found.share_used(machine)
    return numbers
