"""What a search for a recipe is asked for: a budget, and what may be chosen within it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.core.errors import PlanError
from quantkit.core.printable import quoted
from quantkit.core.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from quantkit.families.model import Model
    from quantkit.fitting.hardware import Machine
    from quantkit.fitting.probe import Curve
    from quantkit.fitting.subject import Buildable, PlanOptions, SizedModel, Variant
    from quantkit.recipes.find import Freedom, RecipeSearch
    from quantkit.recipes.losses import Measured
    from quantkit.recipes.machine import Found, MachineSearch
    from quantkit.recipes.rivals import Candidate

ALL = "all"  # instead of a floor's name
_MOST_BITS = 32.0


@dataclass(frozen=True, slots=True)
class BudgetOptions:
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
            raise PlanError(f"--bpw {self.bpw:g} is not a number of bits; give one such as 4.25.")
        if self.context is not None and self.machine is None:
            raise PlanError("--context goes with --for alone; leave it out.")

    def search(
        self,
        source: "Buildable",
        wishes: "PlanOptions",
        *,
        weighted: bool,
        look: "Callable[[], SizedModel]",
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
        aim = self._aim(source, wishes, look)
        search = self.prepare(source, wishes, weighted=weighted, unquantized=aim.machine is None)
        return aim.best(search), aim.machine

    def candidates(
        self,
        source: "Buildable",
        wishes: "PlanOptions",
        *,
        weighted: bool,
        look: "Callable[[], SizedModel]",
        taken: "Collection[str]" = (),
    ) -> "list[Candidate]":
        """What is asked for first, then what might be better: see `recipes.rivals`.

        Args:
            source: what can be built.
            wishes: how it would be built.
            weighted: whether there is, or will be, an importance matrix.
            look: as for `search`.
            taken: quants that are built anyway, in a form of the user's.

        Raises:
            PlanError: as `search` does, of what is asked for.

        """
        from quantkit.recipes.rivals import (
            candidate_of,
            distinct,
            nearest_mixture,
            ways_to_search,
        )

        aim = self._aim(source, wishes, look)
        measured = self._measured(source.model)
        freedom = self._freedom(weighted=weighted, unquantized=aim.machine is None)
        found: list[Candidate] = []
        fits: Callable[[Variant], bool] | None = None
        for way, losses, free in ways_to_search(source.model, measured, freedom):
            try:
                search = _search_over(source, wishes, losses, free)
                best = aim.best(search)
            except PlanError:  # such as: what floors ask for does not fit
                if fits is None:
                    raise
                continue
            fits = fits or aim.limit(search, best)
            found.append(candidate_of(way, best.recipe, source.model))
        assert fits is not None  # noqa: S101 - the first has set it
        allowed = freedom.allowed
        fixed = nearest_mixture(
            source, wishes, fits, weighted=weighted, allowed=allowed, taken=taken
        )
        return [*distinct(found), *([fixed] if fixed is not None else ())]

    def _aim(
        self, source: "Buildable", wishes: "PlanOptions", look: "Callable[[], SizedModel]"
    ) -> "_Aim":
        from quantkit.fitting.probe import probe
        from quantkit.fitting.settings import ContextSettings, check_settings
        from quantkit.recipes.machine import parse_machine

        n_bytes = parse_size(self.budget) if self.budget is not None else None
        if self.machine is None:
            return _Aim(source, wishes, n_bytes, self.bpw)
        machine = parse_machine(self.machine)
        shape = (subject := look()).shape
        settings = ContextSettings(self.context or 0).usual_for(shape)
        check_settings(shape, settings)
        return _Aim(source, wishes, machine=machine, curve=probe(subject, settings))

    def prepare(
        self, source: "Buildable", wishes: "PlanOptions", *, weighted: bool, unquantized: bool
    ) -> "RecipeSearch":
        """The search over what may be chosen; ``unquantized``: whether weights may stay so.

        Raises:
            PlanError: what may be chosen makes no sense.

        """
        from quantkit.recipes.assumed import assume
        from quantkit.recipes.candidates import quantizable

        model = source.model
        losses = self._measured(model) or assume(quantizable(model), model.arch, model.facts)
        freedom = self._freedom(weighted=weighted, unquantized=unquantized)
        return _search_over(source, wishes, losses, freedom)

    def _freedom(self, *, weighted: bool, unquantized: bool) -> "Freedom":
        """What may be chosen; a machine gets nothing above q8_0, which loses next to nothing."""
        from quantkit.recipes.find import Freedom

        lifted, allowed = self._choice()
        return Freedom(weighted, lifted, allowed, unquantized and allowed is None)

    def _measured(self, model: "Model") -> "Measured | None":
        from quantkit.recipes.losses import read_measured

        if self.measured is None:
            return None
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
        if self.types and not names:
            raise PlanError(
                f"--types {quoted(self.types[0])} lists no types; give some of "
                f"{', '.join(known).lower()}, or leave it out."
            )
        if strange := sorted(names.difference(known)):
            raise PlanError(
                f"--types {quoted(strange[0].lower())} is not a type that recipes choose from; "
                f"those are {', '.join(known).lower()}."
            )
        return lifted, names or None


@dataclass(frozen=True, slots=True)
class _Aim:
    """What a file is to fit: bytes, bits per weight, or a machine with what a model takes there."""

    source: "Buildable"
    wishes: "PlanOptions"
    n_bytes: int | None = None
    bpw: float | None = None
    machine: "Machine | None" = None
    curve: "Curve | None" = None

    def best(self, search: "RecipeSearch") -> "Found":
        """The best recipe of a search that fits.

        Raises:
            PlanError: none does.

        """
        from quantkit.recipes.machine import find

        if self.machine is not None:
            return self._on_machine(search, self.machine).best()
        within = search.within(self._most(search))
        return find(search, within, self.source, self.wishes)

    def limit(self, search: "RecipeSearch", best: "Found") -> "Callable[[Variant], bool]":
        """Whether a file fits as well: of a machine, as large at most and in as good a place."""
        if self.machine is None:
            most = self._most(search)
            return lambda variant: variant.file_bytes <= most
        there = self._on_machine(search, self.machine)
        rank = best.placement.rank if best.placement is not None else 0
        most = best.variant.file_bytes
        return lambda v: v.file_bytes <= most and there.place(v).rank <= rank

    def _most(self, search: "RecipeSearch") -> int:
        if self.n_bytes is not None:
            return self.n_bytes
        assert self.bpw is not None  # noqa: S101 - there is one budget
        return search.bytes_at(self.bpw)

    def _on_machine(self, search: "RecipeSearch", machine: "Machine") -> "MachineSearch":
        from quantkit.recipes.machine import MachineSearch

        assert self.curve is not None  # noqa: S101 - it goes with the machine
        return MachineSearch(search, self.source, self.wishes, self.curve, machine)


def _search_over(
    source: "Buildable", wishes: "PlanOptions", losses: "Measured", freedom: "Freedom"
) -> "RecipeSearch":
    from quantkit.recipes.find import RecipeSearch

    return RecipeSearch(
        source.model,
        source.metadata,
        losses,
        imatrix=wishes.imatrix,
        vocabulary_bytes=source.vocabulary_bytes,
        freedom=freedom,
    )


def numbers_of(found: "Found", machine: "Machine | None") -> dict[str, Any]:
    """A recipe that was found as JSON values, every size in bytes."""
    from quantkit.fitting.verdict import describe

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
