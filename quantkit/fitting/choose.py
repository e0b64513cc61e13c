"""Which variant to take on a machine, why, and what would let a larger one run."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from quantkit.fitting.hardware import ram_to_buy
from quantkit.fitting.memory import GIB, total
from quantkit.fitting.probe import Curve
from quantkit.fitting.quality import Scale, beaten_by
from quantkit.fitting.settings import ContextSettings
from quantkit.fitting.verdict import Row, describe, gib
from quantkit.planning.quants import all_quants

_HALF_BITS = 4.0  # fewer bits per weight than this cost quality that shows
_USUAL = "ladder"


def judge(rows: Sequence[Row], scale: Scale) -> list[Row]:
    """The same with what each loses, and what beats it: is no larger, and loses less."""
    rivals = [row.variant for row in for_any_model(rows)]
    found = []
    for row in rows:
        better = beaten_by(row.variant, rivals, scale)
        found.append(
            replace(
                row,
                loss=scale.losses.get(row.variant.name),
                beaten_by=better.name if better is not None else None,
            )
        )
    return found


def recommend(rows: Sequence[Row]) -> Row | None:
    """The best variant that fits.

    Of those with 4 bits and more per weight, one that is whole on GPUs is better than one that
    is not, and then the one that loses least; below 4 bits the least loss counts first, for there
    it shows. Unquantized ones are not recommended beside q8_0, which loses practically nothing.
    Where no loss is known, quants of the usual ladder are preferred to others, and more bits count
    as less loss. Those for models that were trained to their few levels are not for a model of
    which nothing is known.
    """
    fitting = [row for row in for_any_model(rows) if row.placement.fits]
    usual = {q.name for q in all_quants().values() if _USUAL in q.groups} - {"f16"}
    known = [row for row in fitting if row.loss is not None]
    candidates = known or [row for row in fitting if row.variant.name in usual] or fitting

    def key(row: Row) -> tuple[bool, float, float, int]:
        few = row.variant.bits_per_weight < _HALF_BITS
        loss = row.loss.kld if row.loss is not None else -row.variant.bits_per_weight
        place = row.placement.rank
        ranked = (loss, place) if few else (place, loss)
        return few, *ranked, -row.variant.tensor_bytes

    return min(candidates, key=key, default=None)


def for_any_model(rows: Sequence[Row]) -> Sequence[Row]:
    """Those of the variants that are not only for models that were trained to few levels."""
    special = {quant.name for quant in all_quants().values() if quant.trained_only}
    return [row for row in rows if row.variant.name not in special] or rows


def fitting_names(rows: Sequence[Row]) -> Iterable[str]:
    """The names of the variants between which to choose."""
    return (row.variant.name for row in for_any_model(rows) if row.placement.fits)


def reason_for(best: Row | None, rows: Sequence[Row], settings: ContextSettings) -> str:
    """Why the best variant is the best, or why there is none; no whole sentence."""
    context = f"{settings.context:,} tokens of context"
    if settings.parallel > 1:
        context += f" for each of {settings.parallel}"
    if best is not None:
        where = {
            "gpu": "that fits whole in VRAM",
            "experts": "that fits with its experts partly in RAM and the rest in VRAM",
            "layers": "that fits with some layers in RAM",
            "ram": "that fits in RAM",
        }[best.placement.mode]
        return f"the best {where} with {context}, {gib(best.placement.spare)} to spare"
    if not rows:
        return "there is no GGUF; quantkit export makes one of a folder for transformers"
    smallest = for_any_model(rows)[-1]
    what = f"nothing fits with {context}"
    if smallest.advice:
        return f"{what}; for the smallest, {smallest.variant.name}: {'; or '.join(smallest.advice)}"
    return what


def advise(row: Row, rows: Sequence[Row], curve: Curve) -> tuple[str, ...]:
    """What would make a variant fit, or fit better."""
    found = []
    placement = row.placement
    if not placement.fits:
        in_ram = total(placement.parts, "RAM")
        beside = " beside the GPU" if placement.n_gpu_layers else ""
        found.append(f"{ram_to_buy(in_ram) // GIB} GB of RAM{beside}")
    found.append(f"a GPU with {gib(row.vram_for_whole)} free, which holds all of it")
    smaller = (r for r in for_any_model(rows) if r.variant.tensor_bytes < row.variant.tensor_bytes)
    better = next(
        (r for r in smaller if r.placement.fits and r.placement.rank < placement.rank), None
    )
    if better is not None:
        found.append(f"{better.variant.name} {describe(better.placement)}")
    kv = curve.at(curve.settings.cells).kv
    if not placement.fits and placement.short < kv:
        found.append("a shorter context")
        if curve.settings.kv_type == "f16":
            found.append("--kv-type q8_0")
    return tuple(found)
