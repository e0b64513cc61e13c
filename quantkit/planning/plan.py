"""The plan of one quant: every tensor, its encoding and its bytes, in the order of the file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from operator import methodcaller
from typing import Any

from quantkit.checkpoint.imatrix import Imatrix, require_same_model
from quantkit.core.errors import ImatrixError, PlanError
from quantkit.encodings.encoding import Encoding, encodings
from quantkit.families.model import Decoder, Model, Target
from quantkit.planning.llama_quantize import (
    HEEDS_IMATRIX,
    assign,
    in_file_order,
    is_quantized,
    needs_imatrix,
)
from quantkit.planning.names import may_be_quantized
from quantkit.planning.quants import SOURCE, Quant, all_quants
from quantkit.planning.recipe import Override, Recipe, recipe_of


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of one artifact. ``n_bytes`` is exact, without padding."""

    target: Target
    encoding: Encoding

    @property
    def name(self) -> str:
        """The target's."""
        return self.target.name

    @property
    def shape(self) -> tuple[int, ...]:
        """As PyTorch has it, outermost first."""
        return self.target.shape

    @property
    def dtype(self) -> str:
        """What it is stored as: its encoding's name."""
        return self.encoding.name

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.encoding.row_bytes(self.target.columns)

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole tensor."""
        # Rows are whole blocks, so it does not matter that they are counted together.
        return prod(self.target.shape) // self.encoding.elements * self.encoding.bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build of one quant will write, and what must be said of it.

    ``record`` is what a manifest keeps of a recipe that was searched, and ``choice`` of how it, or
    a fixed mixture, was chosen.
    """

    quant: Quant
    tensors: tuple[PlannedTensor, ...]
    remarks: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    choice: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors, without padding and header."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits per weight over all tensors."""
        return 8 * self.n_bytes / sum(tensor.target.n_elements for tensor in self.tensors)

    @property
    def requantized(self) -> Target | None:
        """The first tensor that is stored in blocks and encoded anew, as others."""
        known = encodings()
        for tensor in self.tensors:
            stored = tensor.target.stored
            if stored != tensor.encoding.name and is_quantized(known[stored]):
                return tensor.target
        return None


def make_plan(
    model: Model, quant: Quant, imatrix: Imatrix | None = None, recipe: Recipe | None = None
) -> Plan:
    """The plan of one quant of one model.

    Args:
        model: of which.
        quant: what is asked for.
        imatrix: the importance matrix, if there is one.
        recipe: where it is not the quant's own.

    Raises:
        ImatrixError, PlanError: as `make_plans`.

    """
    (plan,) = make_plans(model, [(quant, recipe or recipe_of(quant))], imatrix)
    return plan


def make_plans(
    model: Model, wanted: Sequence[tuple[Quant, Recipe]], imatrix: Imatrix | None = None
) -> list[Plan]:
    """The plans of several quants of one model.

    Args:
        model: of which.
        wanted: what is asked for, each with its recipe.
        imatrix: the importance matrix, if there is one.

    Raises:
        ImatrixError: quants need an importance matrix that is absent or lacks a tensor, or it is
            of another model.
        PlanError: an override matches no tensor, or llama-quantize could not write one.

    """
    has_imatrix = imatrix is not None
    plans = [outline_plan(model, quant, has_imatrix, recipe) for quant, recipe in wanted]
    recipes = [recipe for _, recipe in wanted]
    remarked = [
        replace(plan, remarks=tuple(_remarks(plan, recipe, model, imatrix)))
        for plan, recipe in zip(plans, recipes, strict=True)
    ]
    lacking = [_lacking(plan, recipe, imatrix) for plan, recipe in zip(plans, recipes, strict=True)]
    if any(lacking):
        raise ImatrixError(_why_imatrix(plans, lacking, imatrix))
    return remarked


def _lacking(plan: Plan, recipe: Recipe, imatrix: Imatrix | None) -> PlannedTensor | None:
    """The first tensor that cannot go without importance and has none."""
    for tensor in plan.tensors:
        if not tensor.encoding.is_block:
            continue
        columns = None if imatrix is None else imatrix.columns_of(tensor.target)
        if columns is None and needs_imatrix(tensor.target, tensor.encoding, recipe):
            return tensor
    return None


def _remarks(plan: Plan, recipe: Recipe, model: Model, imatrix: Imatrix | None) -> Iterator[str]:
    quant = plan.quant
    if quant.base is not None and not quant.searched:
        plain = replace(recipe, output=None, token_embedding=None)
        base = outline_plan(model, all_quants()[quant.base], imatrix is not None, plain)
        if base.tensors == plan.tensors:
            yield f"{quant.name} stores every tensor of this model as {quant.base} does."
    if imatrix is not None:
        blocks = [tensor.target for tensor in plan.tensors if tensor.encoding.is_block]
        if remark := require_same_model(imatrix, model.targets, blocks):
            yield remark


def outline_plan(
    model: Model, quant: Quant, has_imatrix: bool, recipe: Recipe | None = None
) -> Plan:
    """The plan as it would be with or without an importance matrix, which is not looked at.

    Raises:
        PlanError: an override matches no tensor, or none that it could change, or llama-quantize
            could not write a tensor.

    """
    if quant.name == SOURCE:
        return _as_stored(model, quant)
    recipe = recipe or recipe_of(quant)
    targets = in_file_order(model.targets)
    _require_effect(recipe.overrides, targets, model.arch)
    try:
        chosen = assign(targets, model.arch, model.facts, recipe, has_imatrix)
    except PlanError as error:
        if quant.base is None:
            raise
        message = f"{quant.name} cannot be built: {error} Or ask for {quant.base}."
        raise PlanError(message) from None
    return Plan(quant, tuple(map(PlannedTensor, targets, chosen)), record=recipe.record)


def needs_importance(plan: Plan, recipe: Recipe) -> bool:
    """Whether llama-quantize could not write a plan of a recipe without an importance matrix."""
    return any(needs_imatrix(t.target, t.encoding, recipe) for t in plan.tensors)


def outline_usual(model: Model, quant: Quant) -> tuple[Plan, bool]:
    """The plan of a quant as it is usually built, and whether it takes an importance matrix.

    Raises:
        PlanError: as `outline_plan` does.

    """
    plan = outline_plan(model, quant, has_imatrix=False)
    needed = needs_importance(plan, recipe_of(quant))
    if needed and quant.mixture in HEEDS_IMATRIX:
        plan = outline_plan(model, quant, has_imatrix=True)
    return plan, needed


def _as_stored(model: Model, quant: Quant) -> Plan:
    """Every tensor in its own type, as llama-quantize's ``COPY`` of a GGUF has it."""
    if isinstance(model, Decoder):
        raise PlanError(
            f"{quant.name} is for GGUFs and for what llama.cpp's converter describes; of a "
            f"{model.family} model choose bf16, f16 or f32."
        )
    known = encodings()
    return Plan(
        quant, tuple(PlannedTensor(t, known[t.stored]) for t in in_file_order(model.targets))
    )


def _require_effect(overrides: Sequence[Override], targets: Sequence[Target], arch: str) -> None:
    for number, override in enumerate(overrides):
        matched = [target for target in targets if override.pattern.search(target.name)]
        if not matched:
            raise PlanError(
                f"--tensor-type {override.pattern.pattern!r} matches no tensor; "
                "quantkit build --dry-run lists their names."
            )
        earlier = [before.pattern for before in overrides[:number]]
        if not any(
            may_be_quantized(target, arch)
            and not any(map(methodcaller("search", target.name), earlier))
            for target in matched
        ):
            raise PlanError(
                f"--tensor-type {override.pattern.pattern!r} changes nothing: what it matches "
                f"({matched[0].name} ...) keeps its type or is taken by an earlier one; leave it "
                "out."
            )


def _why_imatrix(
    plans: Sequence[Plan], lacking: Sequence[PlannedTensor | None], imatrix: Imatrix | None
) -> str:
    """Of plans and the tensor that each lacks importance for, if any: what the user must hear."""
    found = [(p.quant.name, tensor) for p, tensor in zip(plans, lacking, strict=True) if tensor]
    names = [name for name, _ in found]
    first, tensor = found[0]
    if imatrix is not None:
        return (
            f"{imatrix.path} has no entry for {tensor.target.name}, which {first} stores as "
            f"{tensor.encoding.name}; make the importance matrix from more text."
        )
    need = f"{first} needs"
    if len(names) > 1:
        need = f"{', '.join(names[:-1])} and {names[-1]} need"
    return (
        f"{need} an importance matrix: without one {tensor.target.name} as "
        f"{tensor.encoding.name} would be garbage. Make one with --imatrix auto, or pass one with "
        "--imatrix FILE; or choose q2_k or larger."
    )
