"""The best recipe for the memory of a machine: the largest file that `fit` can place there.

`fit` puts layers and experts on GPUs and in RAM as whole tensors, so what fits is not a sum of
bytes: budgets are tried, and each recipe is placed as `fit` would place it.
"""

from dataclasses import dataclass, replace

from quantkit.core.errors import PlanError
from quantkit.core.units import format_size, shown
from quantkit.encodings.encoding import encodings
from quantkit.fitting.hardware import (
    HardwareError,
    Machine,
    hardware_profiles,
    machine_from_profile,
    machine_from_sizes,
)
from quantkit.fitting.memory import total
from quantkit.fitting.placement import MODES, Placement, place
from quantkit.fitting.probe import Curve
from quantkit.fitting.subject import Buildable, PlanOptions, Variant, variant_of
from quantkit.fitting.verdict import needs_at
from quantkit.planning.llama_quantize import in_file_order
from quantkit.planning.plan import PlannedTensor, needs_importance, outline_plan
from quantkit.recipes.file import SearchedRecipe, apply_recipe
from quantkit.recipes.find import RecipeSearch

_PARTS = 4096  # of what budgets differ in: the finest that they are told apart by
_ENOUGH_BITS = 4.0  # from which on a faster place is better than more bits, as in fit.verdict
_WORTH = 1.05  # below that, so many times the bytes are what a worse place must have room for
_NO_MACHINE = Machine("", (), 0, None, False, "")


@dataclass(frozen=True, slots=True)
class Found:
    """A recipe, the file that it makes, and where its parts go, where a machine was asked for.

    ``loss`` is the divergence (nats) that the search expects of it.
    """

    recipe: SearchedRecipe
    loss: float
    variant: Variant
    placement: Placement | None = None

    def share_used(self, machine: Machine) -> float:
        """What the weights take of what a machine has for weights, beside all other parts."""
        parts = () if self.placement is None else self.placement.parts
        weights = sum(part.n_bytes for part in parts if part.name == "weights")
        memory = machine.ram + (0 if machine.unified else machine.vram)
        return weights / (memory - total(parts) + weights)


def parse_machine(text: str) -> Machine:
    """The machine that ``--for`` names: ``24GB + 32GB``, GPUs first and RAM last, or a profile.

    A GPU may also be named (``rtx-4090 + 64GB``), and ``0 + 32GB`` has none.

    Raises:
        PlanError: it has not that form.
        HardwareError, SizeError: a part of it is not a GPU or no size.

    """
    parts = [part.strip() for part in text.split("+")]
    if len(parts) == 1 and parts[0].lower() in hardware_profiles():
        return machine_from_profile(parts[0])
    if len(parts) < 2 or not all(parts):
        raise PlanError(
            f"--for {shown(text)} must name GPUs and then RAM, such as '24GB + 32GB', '0 + 32GB' "
            "without a GPU, or a machine that quantkit fit --hardware lists."
        )
    *gpus, ram = parts
    named = [] if gpus == ["0"] else gpus
    try:
        return machine_from_sizes(named, ram, _NO_MACHINE)
    except HardwareError as error:  # which speaks of the option that `fit` has
        raise HardwareError(
            f"--for {shown(text)} names no machine: {str(error).removeprefix('--gpu ')}"
        ) from None


@dataclass(frozen=True, slots=True)
class MachineSearch:
    """Recipes of a model for a machine: what to search, what is planned, and where it is to run."""

    search: RecipeSearch
    source: Buildable
    wishes: PlanOptions
    curve: Curve
    machine: Machine

    def best(self) -> Found:
        """The best recipe that runs on the machine.

        With 4 bits per weight and more, the best place counts most (all on GPUs, then all but
        experts, then all but some layers), and then more bits, as `fit` chooses between quants.
        Where no place has room for 4 bits, bits count most, and of places that differ in them by a
        twentieth at most the best is taken.

        Raises:
            PlanError: even the smallest does not fit.

        """
        found = []
        part = 0
        for rank in range(MODES.index("disk")):
            largest = self._largest(rank, part)
            if largest is None:
                continue
            part = largest
            best, _ = self._place(self._bytes_of(part))
            if best.variant.bits_per_weight >= _ENOUGH_BITS:
                return best
            found.append(best)
        if not found:
            _, placement = self._place(self.search.smallest)
            raise PlanError(
                f"Even the smallest file of this model that may be chosen "
                f"({format_size(self.search.smallest)}) does not fit on {self.machine.title}: "
                f"{format_size(placement.short)} are missing; give more memory, a shorter "
                "--context, or an importance matrix."
            )
        most = max(one.variant.tensor_bytes for one in found)
        return next(one for one in found if one.variant.tensor_bytes * _WORTH >= most)

    def _largest(self, rank: int, low: int) -> int | None:
        """The largest part that is placed no worse than in a mode, None where none is.

        Args:
            rank: of the mode.
            low: what better modes have room for.

        """

        def fits(part: int) -> bool:
            return self.place(self._sketch(self._bytes_of(part))).rank <= rank

        if not fits(low):
            return None
        # Mostly a worse mode has room for no more.
        high = _PARTS if low < _PARTS and fits(low + 1) else low
        while low < high:
            middle = (low + high + 1) // 2
            if fits(middle):
                low = middle
            else:
                high = middle - 1
        return low

    def _bytes_of(self, part: int) -> int:
        span = self.search.largest - self.search.smallest
        return self.search.smallest + span * part // _PARTS

    def _sketch(self, n_bytes: int) -> Variant:
        """The best file of at most so many bytes, as far as its placement depends on it."""
        types, known = self.search.within(n_bytes).types, encodings()
        sizes = tuple(
            PlannedTensor(target, known[types.get(target.name, target.stored)]).n_bytes
            for target in in_file_order(self.source.model.targets)
        )
        return Variant("", self.source.tensors, sizes, "", 1, n_bytes, False, 0, 0, False)

    def place(self, variant: Variant) -> Placement:
        """Where the parts of a file go on the machine."""
        needed = needs_at(variant, self.curve, self.curve.settings.cells)
        return place(needed, self.machine, variant.file_bytes)

    def _place(self, n_bytes: int) -> tuple[Found, Placement]:
        found = find(self.search, self.search.within(n_bytes), self.source, self.wishes)
        placement = self.place(found.variant)
        return replace(found, placement=placement), placement


def find(
    search: RecipeSearch, recipe: SearchedRecipe, source: Buildable, wishes: PlanOptions
) -> Found:
    """A recipe with the file that it makes of a model.

    Raises:
        PlanError: the recipe is for another model.

    """
    quant, chosen = apply_recipe(recipe, source.model)
    plan = outline_plan(source.model, quant, recipe.weighted, chosen)
    needed = needs_importance(plan, chosen)
    return Found(recipe, search.loss_of(recipe), variant_of(plan, source, wishes, needed=needed))
