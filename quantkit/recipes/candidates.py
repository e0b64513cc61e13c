"""Which encodings each tensor may take: what llama.cpp runs well, above floors, as rows allow.

A recipe says the type of every tensor that llama-quantize would quantize, and of no other. Where
rows are no whole blocks of an encoding, its fallback stands in before any byte is counted. Blocks
that a source has already are kept: to round them anew would make them worse.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from quantkit.core.errors import PlanError
from quantkit.core.profiles import load_profile
from quantkit.encodings.encoding import Encoding, encoding
from quantkit.families.model import Model, Target
from quantkit.planning.fallback import fit_to_rows
from quantkit.planning.llama_quantize import NEEDS_IMATRIX
from quantkit.planning.names import category_of, may_be_quantized, n_dims

_PROFILE = "recipes.toml"
_MOST_DIMENSIONS = 3  # of what llama-quantize converts


@dataclass(frozen=True, slots=True)
class Floor:
    """The fewest bits of some tensors, by category or parts of the name, and who says so.

    One that ``shows_late`` guards from harm that grows along a text, which short ones do not show.
    """

    name: str
    categories: frozenset[str]
    parts: tuple[str, ...]
    models: Literal["all", "moe", "tied"]
    least: Encoding
    source: str
    shows_late: bool = False

    def holds(self, name: str) -> bool:
        """Whether it is for a tensor of this name."""
        return category_of(name) in self.categories or any(part in name for part in self.parts)


@dataclass(frozen=True, slots=True)
class Offer:
    """A tensor and the encodings that it may take, each once, fewest bits first."""

    target: Target
    encodings: tuple[Encoding, ...]


@cache
def all_floors() -> Mapping[str, Floor]:
    """Every floor by name, from ``profiles/recipes.toml``."""
    return {
        name: Floor(
            name,
            frozenset(row.get("categories", ())),
            tuple(row.get("parts", ())),
            row.get("models", "all"),
            encoding(row["least"]),
            row["source"],
            row.get("shows_late", False),
        )
        for name, row in load_profile(_PROFILE)["floors"].items()
    }


def known_candidates() -> tuple[Encoding, ...]:
    """The block formats that recipes choose from, fewest bits first."""
    return tuple(map(encoding, load_profile(_PROFILE)["candidates"]))


def quantizable(model: Model) -> tuple[Target, ...]:
    """The tensors whose type a recipe says."""
    return tuple(target for target in model.targets if may_be_quantized(target, model.arch))


def offer(
    model: Model,
    weighted: Collection[str],
    *,
    lifted: Collection[str] = (),
    allowed: Collection[str] | None = None,
    unquantized: bool = True,
) -> list[Offer]:
    """What every quantizable tensor of a model may be stored as.

    Args:
        model: of which.
        weighted: names of the tensors that an importance matrix has columns for; the others get no
            encoding that needs it.
        lifted: names of floors that do not count.
        allowed: the names of block formats to choose from, None for all.
        unquantized: whether tensors may also stay in 16 bits.

    Raises:
        PlanError: a floor is not known, or nothing that is allowed is left for a tensor.

    """
    floors = [floor for name, floor in all_floors().items() if name not in lifted]
    if strange := sorted(set(lifted) - all_floors().keys()):
        raise PlanError(
            f"There is no floor {strange[0]!r}; there are {', '.join(sorted(all_floors()))}."
        )
    targets = quantizable(model)
    kinds = {"all"}
    kinds |= {"moe"} if model.facts.n_experts > 1 else set()
    kinds |= {"tied"} if all(category_of(t.name) != "output" for t in targets) else set()
    counting = [floor for floor in floors if floor.models in kinds]
    wanted = [kind for kind in known_candidates() if allowed is None or kind.name in allowed]
    return [
        Offer(target, _encodings(target, wanted, counting, target.name in weighted, unquantized))
        for target in targets
    ]


def _encodings(
    target: Target,
    wanted: Sequence[Encoding],
    floors: Iterable[Floor],
    weighted: bool,
    unquantized: bool,
) -> tuple[Encoding, ...]:
    stored = encoding(target.stored)
    if stored.is_block or n_dims(target.shape) > _MOST_DIMENSIONS:
        return (stored,)
    least = max((_bits(f.least) for f in floors if f.holds(target.name)), default=0.0)
    found = [
        fit_to_rows(kind, target)
        for kind in wanted
        if _bits(kind) >= least and (weighted or kind.name not in NEEDS_IMATRIX)
    ]
    if unquantized:
        found.append(encoding("F16" if stored.name == "F16" else "BF16"))
    if not found:
        raise PlanError(
            f"No type that is allowed is left for {target.name}; allow larger ones with --types, "
            "or lift the floor that it has with --no-floor."
        )
    return tuple(sorted(dict.fromkeys(found), key=_bits))


def _bits(kind: Encoding) -> float:
    """Bits per weight, to rank formats by; sizes are counted in bytes."""
    return 8 * kind.bytes / kind.elements
