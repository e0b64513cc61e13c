"""The recipe that loses least within so many bytes of a file, exactly as the plan counts them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from quantkit.checkpoint.imatrix import Imatrix
from quantkit.core.errors import PlanError
from quantkit.core.profiles import load_profile
from quantkit.core.units import format_size
from quantkit.encodings.encoding import encodings
from quantkit.families.model import Model
from quantkit.formats.gguf.layout import lay_out, padded
from quantkit.formats.gguf.metadata import ModelMetadata
from quantkit.planning.llama_quantize import in_file_order
from quantkit.planning.plan import Plan, PlannedTensor
from quantkit.planning.quants import all_quants
from quantkit.recipes.assumed import normal_errors
from quantkit.recipes.candidates import Offer, offer, quantizable
from quantkit.recipes.file import SearchedRecipe, digest_of
from quantkit.recipes.losses import Measured
from quantkit.recipes.search import Choice, Search

# What the header says of an importance matrix that is still to be made, at most: two texts of 127
# bytes, two numbers, and their keys.
_IMATRIX_KEYS = 512
_USUAL_BASE = "q8_0"  # of a recipe that rounds next to nothing


@dataclass(frozen=True, slots=True)
class Freedom:
    """What a search may choose from.

    ``weighted`` says that there is, or will be, an importance matrix. ``lifted`` are floors that do
    not count, ``allowed`` the block formats, None for all. Tensors may stay ``unquantized``.
    """

    weighted: bool = False
    lifted: Collection[str] = ()
    allowed: Collection[str] | None = None
    unquantized: bool = True


_USUAL = Freedom()


class RecipeSearch:
    """Recipes of one model for any budget. ``units`` are what each tensor may be stored as."""

    def __init__(
        self,
        model: Model,
        metadata: ModelMetadata,
        measured: Measured,
        *,
        imatrix: Imatrix | None = None,
        vocabulary_bytes: int = 0,
        freedom: Freedom = _USUAL,
    ) -> None:
        """Prepare the search.

        Args:
            model: of which.
            metadata: its keys, which are part of the file.
            measured: what rounding loses. An error that it lacks is taken to be that of normal
                rows.
            imatrix: the importance matrix, if it already exists; it names itself in the file.
            vocabulary_bytes: what the keys lack of the vocabulary.
            freedom: what to choose from.

        Raises:
            PlanError: nothing was measured of a tensor, or nothing is left to choose for it.

        """
        self._model = model
        self._measured = measured
        self._weighted = freedom.weighted or imatrix is not None
        self._offers = offer(
            model,
            _with_importance(model, imatrix, all_of_them=self._weighted),
            lifted=freedom.lifted,
            allowed=freedom.allowed,
            unquantized=freedom.unquantized,
        )
        header, self._kept = _bytes_beside(model, metadata, imatrix, self._offers)
        unknown = _IMATRIX_KEYS if self._weighted and imatrix is None else 0
        self._header = header + vocabulary_bytes + unknown
        self.units = _choices(self._offers, measured)
        self._shapes = digest_of(one.target for one in self._offers)
        self._search = Search(self.units)

    @property
    def smallest(self) -> int:
        """Bytes of the smallest file that there is to choose."""
        return self._fixed + self._search.smallest

    @property
    def largest(self) -> int:
        """Bytes of the file that loses least."""
        return self._fixed + self._search.largest

    def within(self, n_bytes: int) -> SearchedRecipe:
        """The best recipe whose file has at most so many bytes.

        Raises:
            PlanError: none is as small, or the unquantized file is smaller.

        """
        if n_bytes < self.smallest:
            raise PlanError(
                f"The smallest file of this model that may be chosen has {self.smallest:,} bytes "
                f"({format_size(self.smallest)}), more than the {n_bytes:,} that are given; give "
                "more, an importance matrix, or --no-floor."
            )
        if n_bytes > self.largest:
            raise PlanError(
                f"{n_bytes:,} bytes are more than the {self.largest:,} "
                f"({format_size(self.largest)}) of the largest file that may be chosen; there is "
                "nothing to search, so build bf16 or q8_0."
            )
        chosen = self._search.choose(n_bytes - self._fixed)
        picked = [unit[i] for unit, i in zip(self.units, chosen, strict=True)]
        targets = [one.target for one in self._offers]
        return SearchedRecipe(
            arch=self._model.arch,
            base=_base_of(picked),
            shapes=self._shapes,
            types={t.name: c.encoding for t, c in zip(targets, picked, strict=True)},
            weighted=self._weighted,
            basis=self._measured.basis,
        )

    def at_bits(self, bits_per_weight: float) -> SearchedRecipe:
        """The best recipe of at most so many bits per weight, over all tensors.

        Raises:
            PlanError: as `within`.

        """
        return self.within(self.bytes_at(bits_per_weight))

    def bytes_at(self, bits_per_weight: float) -> int:
        """The most bytes of a file of so many bits per weight, over all tensors."""
        n_elements = sum(target.n_elements for target in self._model.targets)
        return self._header + int(bits_per_weight * n_elements / 8)

    def loss_of(self, recipe: SearchedRecipe) -> float:
        """The divergence (nats) that is expected of a recipe of this search."""
        return sum(
            choice.loss
            for one, unit in zip(self._offers, self.units, strict=True)
            for choice in unit
            if choice.encoding == recipe.types[one.target.name]
        )

    @property
    def _fixed(self) -> int:
        """Bytes that are the same whatever is chosen."""
        return self._header + self._kept


def _base_of(picked: Iterable[Choice]) -> str:
    """The file type of the encoding that most bytes are in."""
    bases: Mapping[str, str] = load_profile("recipes.toml")["base"]
    n_bytes: dict[str, int] = {}
    for choice in picked:
        n_bytes[choice.encoding] = n_bytes.get(choice.encoding, 0) + choice.n_bytes
    blocks = [name for name in n_bytes if name in bases]
    most = max(blocks, key=lambda name: n_bytes[name], default=None)
    return _USUAL_BASE if most is None else bases[most]


def _with_importance(model: Model, imatrix: Imatrix | None, *, all_of_them: bool) -> frozenset[str]:
    """The tensors that have importance, or will have it."""
    targets = quantizable(model)
    if imatrix is None:
        return frozenset(target.name for target in targets) if all_of_them else frozenset()
    return frozenset(t.name for t in targets if imatrix.columns_of(t) is not None)


def _bytes_beside(
    model: Model, metadata: ModelMetadata, imatrix: Imatrix | None, offers: Iterable[Offer]
) -> tuple[int, int]:
    """Bytes of the header, and of the tensors that no recipe changes: no choice changes either."""
    known = encodings()
    tensors = tuple(PlannedTensor(t, known[t.stored]) for t in in_file_order(model.targets))
    (file,) = lay_out(Plan(all_quants()[_USUAL_BASE], tensors), metadata, imatrix).files
    chosen = {one.target.name for one in offers}
    return len(file.header), sum(padded(t) for t in tensors if t.target.name not in chosen)


def _choices(offers: Iterable[Offer], measured: Measured) -> list[list[Choice]]:
    least = min((s for s in measured.sensitivities.values() if s > 0), default=1.0)
    units = []
    for one in offers:
        name = one.target.name
        sensitivity = measured.sensitivities.get(name)
        if sensitivity is None and len(one.encodings) > 1:
            raise PlanError(
                f"Nothing was measured of {name}, so nothing can be chosen for it; measure this "
                "model."
            )
        # What is lost in the noise of a measurement is taken to be the least that was seen.
        factor = max(sensitivity or 0.0, least)
        units.append(
            [
                Choice(
                    kind.name,
                    padded(PlannedTensor(one.target, kind)),
                    factor * _error(measured, name, kind.name),
                )
                for kind in one.encodings
            ]
        )
    return units


def _error(measured: Measured, tensor: str, kind: str) -> float:
    error = measured.errors.get((tensor, kind))
    return normal_errors().get(kind, 0.0) if error is None else error
