"""The quants of a model, as they are there or would be built: their tensors' bytes, their files."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from quantkit.checkpoint.converter.wish import ConverterOptions
from quantkit.core.errors import PlanError
from quantkit.families.model import Model
from quantkit.fitting.shape import Tensors
from quantkit.formats.gguf.layout import aligned, file_name, header_bytes, lay_out, table_bytes
from quantkit.formats.gguf.metadata import ModelMetadata
from quantkit.planning.llama_quantize import in_file_order
from quantkit.planning.plan import Plan, make_plan, outline_usual
from quantkit.planning.quants import Quant, all_quants

if TYPE_CHECKING:
    from quantkit.checkpoint.imatrix import Imatrix

_AS_USUAL = ConverterOptions()


@dataclass(frozen=True)  # without slots, which cached properties cannot use
class Variant:
    """One quant of a model.

    ``sizes`` are the bytes of each tensor. ``file_bytes`` counts all files with their headers. It
    is exact where the tokenizer is known; for a bundled model the vocabulary's share of the header
    is estimated (``file_is_exact``). ``download_bytes`` is the checkpoint that a build reads and is
    not here yet. One that ``requantizes`` encodes anew what is stored in blocks, which a build does
    where it is allowed. ``path`` is where its first file is, as it was named; empty where it is not
    here.
    """

    name: str
    tensors: Tensors
    sizes: tuple[int, ...]
    file_name: str
    n_files: int
    file_bytes: int
    file_is_exact: bool
    download_bytes: int
    source_bytes: int
    needs_imatrix: bool
    good_for: str = ""
    format: str = "gguf"
    requantizes: bool = False
    path: str = ""

    @cached_property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without padding and header."""
        return sum(self.sizes)

    @cached_property
    def bits_per_weight(self) -> float:
        """Mean bits per weight over all tensors."""
        return 8 * self.tensor_bytes / self.tensors.n_elements

    @property
    def size_of(self) -> dict[str, int]:
        """The bytes of each tensor by its name."""
        return dict(zip(self.tensors.names, self.sizes, strict=True))


@dataclass(frozen=True)  # without slots, which cached properties cannot use
class Buildable:
    """What GGUFs are planned from: a model, its keys, and what building one takes.

    ``vocabulary_bytes`` are the estimated share of the vocabulary in a header, 0 where it is known
    and among the keys. ``source_bytes`` and ``download_bytes`` are those of `Variant`.
    """

    model: Model
    metadata: ModelMetadata
    source_bytes: int
    download_bytes: int
    vocabulary_bytes: int = 0

    @cached_property
    def tensors(self) -> Tensors:
        """The model's tensors, in the order of the file."""
        targets = in_file_order(self.model.targets)
        return Tensors(tuple(t.name for t in targets), tuple(t.shape for t in targets))

    @cached_property
    def table_bytes(self) -> int:
        """What tensors take of a header, whatever they are stored as."""
        return table_bytes(self.tensors)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How the variants would be built: which, in files of what size, with which imatrix.

    ``quants`` None stands for all of them, ``shard_size`` None for single files; it counts tensor
    bytes, as in ``formats.gguf.layout.lay_out``. ``converter`` is how llama.cpp's converter is
    asked, where it is.
    """

    quants: Sequence[Quant] | None = None
    shard_size: int | None = None
    imatrix: "Imatrix | None" = None
    converter: ConverterOptions = _AS_USUAL


def plan_variants(source: Buildable, wishes: PlanOptions) -> tuple[Variant, ...]:
    """What can be built, largest first: all of it, or what is wished for.

    Raises:
        PlanError: a quant that is wished for cannot be made of this model.

    """
    variants = []
    for quant in all_quants().values() if wishes.quants is None else wishes.quants:
        try:
            plan, needed = _outline(source.model, quant, wishes.imatrix)
        except PlanError:
            if wishes.quants is None:
                continue  # llama-quantize cannot make this one of this model
            raise
        variants.append(variant_of(plan, source, wishes, needed=needed))
    return tuple(sorted(variants, key=lambda variant: -variant.tensor_bytes))


def variant_of(plan: Plan, source: Buildable, wishes: PlanOptions, *, needed: bool) -> Variant:
    """The variant that a plan makes.

    Args:
        plan: of what can be built.
        source: what it is planned from.
        wishes: how it would be built.
        needed: whether it cannot be without an importance matrix, and ``wishes`` has none.

    """
    sizes = tuple(tensor.n_bytes for tensor in plan.tensors)
    first, n_files, n_bytes = _files(plan, sizes, source, wishes)
    guessed = source.vocabulary_bytes > 0 or (needed and wishes.imatrix is None)
    return Variant(
        name=plan.quant.name,
        tensors=source.tensors,
        sizes=sizes,
        file_name=first,
        n_files=n_files,
        file_bytes=n_bytes + source.vocabulary_bytes,
        file_is_exact=not guessed,
        download_bytes=source.download_bytes,
        source_bytes=source.source_bytes,
        needs_imatrix=needed,
        good_for=plan.quant.good_for,
        requantizes=plan.requantized is not None,
    )


def _files(
    plan: Plan, sizes: Sequence[int], source: Buildable, wishes: PlanOptions
) -> tuple[str, int, int]:
    """The name of the first file of a variant, how many there are, and the bytes of all."""
    if wishes.shard_size is None:
        header = header_bytes(plan, source.metadata, wishes.imatrix, source.table_bytes)
        n_bytes = header + sum(map(aligned, sizes))
        return f"{file_name(plan, source.metadata)}.gguf", 1, n_bytes
    layout = lay_out(plan, source.metadata, wishes.imatrix, wishes.shard_size)
    first = layout.files[0].name
    path = first if layout.folder is None else f"{layout.folder}/{first}"
    return path, len(layout.files), layout.n_bytes


def _outline(model: Model, quant: Quant, imatrix: "Imatrix | None") -> tuple[Plan, bool]:
    """The plan, and whether it needs an importance matrix, which it then is planned with."""
    if imatrix is not None:
        return make_plan(model, quant, imatrix), False
    return outline_usual(model, quant)
