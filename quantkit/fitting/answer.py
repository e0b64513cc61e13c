"""The answer: every variant of a model on a machine, and the one to take."""

from dataclasses import dataclass, replace

from quantkit.core.units import format_size
from quantkit.fitting import transformers
from quantkit.fitting.choose import advise, fitting_names, judge, reason_for, recommend
from quantkit.fitting.hardware import Machine
from quantkit.fitting.memory import MemoryPart, total
from quantkit.fitting.model import SizedModel, Stored
from quantkit.fitting.probe import Curve
from quantkit.fitting.quality import Scale, choose_scale, published_scale
from quantkit.fitting.settings import ContextSettings
from quantkit.fitting.verdict import Row, place_variant


@dataclass(frozen=True, slots=True)
class Other:
    """A format that transformers loads. All figures are modelled, but the weights of some.

    ``weight_bytes`` is None where the format cannot hold the model; ``note`` then says why.
    """

    name: str
    weight_bytes: int | None
    parts: tuple[MemoryPart, ...]
    fits: bool
    spare: int
    note: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Every variant on one machine, largest first, and the one to take, by name.

    ``scale`` is what the variants are ranked by.
    """

    subject: SizedModel
    machine: Machine
    settings: ContextSettings
    curve: Curve
    scale: Scale
    rows: tuple[Row, ...]
    others: tuple[Other, ...]
    recommended: str | None
    reason: str
    warnings: tuple[str, ...]

    @property
    def best(self) -> Row | None:
        """The row of the variant to take."""
        return next((row for row in self.rows if row.variant.name == self.recommended), None)


def answer(
    subject: SizedModel,
    curve: Curve,
    machine: Machine,
    measured: Scale | None = None,
    *,
    weighted: bool = False,
) -> Answer:
    """Place every variant of a model on a machine and choose one.

    Args:
        subject: the model.
        curve: what llama.cpp allocates besides its weights.
        machine: where it is to run.
        measured: what was measured of its quants, if anything was.
        weighted: whether what is built gets an importance matrix, also where it needs none.

    """
    placed = [place_variant(variant, subject, curve, machine) for variant in subject.variants]
    names = list(fitting_names(placed))
    scale, why = choose_scale(measured, published_scale(weighted=weighted), names)
    judged = judge(placed, scale)
    rows = tuple(
        row if row.placement.mode == "gpu" else replace(row, advice=advise(row, judged, curve))
        for row in judged
    )
    best = recommend(rows)
    warnings = _warnings(subject, curve.settings, machine, best)
    return Answer(
        subject=subject,
        machine=machine,
        settings=curve.settings,
        curve=curve,
        scale=scale,
        rows=rows,
        others=_others(subject, curve, machine),
        recommended=best.variant.name if best else None,
        reason=reason_for(best, rows, curve.settings),
        warnings=(*([why] if why else []), *warnings),
    )


def _others(subject: SizedModel, curve: Curve, machine: Machine) -> tuple[Other, ...]:
    """Folders for transformers: those that are there, or those that could be built."""
    found = subject.stored
    if not found and subject.model is not None:
        found = transformers.formats_of(subject.model)
    elif not found and subject.unquantized and subject.variants:
        found = transformers.formats_of_tensors(subject.variants[0].tensors)
    return tuple(_other(stored, curve, machine) for stored in found)


def _other(stored: Stored, curve: Curve, machine: Machine) -> Other:
    if stored.n_bytes is None:
        return Other(stored.name, None, (), fits=False, spare=0, note=stored.note)
    kept = transformers.remembered(curve)
    shape, settings = curve.shape, curve.settings
    parts = transformers.parts(stored.n_bytes, stored.label, shape, settings, kept)
    spare = machine.vram - total(parts)
    fits = bool(machine.gpus) and spare >= 0
    return Other(stored.name, stored.n_bytes, parts, fits, max(0, spare), stored.note)


def _warnings(
    subject: SizedModel, settings: ContextSettings, machine: Machine, best: Row | None
) -> list[str]:
    found = []
    if settings.context > subject.shape.n_ctx_train:
        found.append(
            f"A context of {settings.context:,} is above the {subject.shape.n_ctx_train:,} tokens "
            "that the model was trained for; its output will be poor beyond that."
        )
    is_here = subject.gguf is not None and best is not None and not best.variant.source_bytes
    if best is not None and machine.disk is not None and not is_here:
        for needed, purpose in ((best.disk_to_run, "hold"), (best.disk_to_build, "build")):
            if needed > machine.disk:
                found.append(
                    f"To {purpose} {best.variant.name} takes {format_size(needed)} of disk, and "
                    f"{format_size(machine.disk)} are free here; use another disk for it."
                )
    return found
