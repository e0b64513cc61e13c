"""The answer: every variant of a model on a machine, the one to take, and what would help."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantkit.core.units import format_size
from quantkit.fit import transformers
from quantkit.fit.hardware import Machine, ram_to_buy
from quantkit.fit.memory import GIB, MIB, Needs, Part, needs, total, weigh
from quantkit.fit.placement import Placement, place, ram_alone, vram_for_whole
from quantkit.fit.probe import CELLS, UBATCH, Curve, Settings
from quantkit.fit.subject import Stored, Subject, Variant
from quantkit.plan.quants import all_quants

_HALF_BITS = 4.0  # fewer bits per weight than this cost quality that shows
_USUAL = "ladder"


@dataclass(frozen=True, slots=True)
class Row:
    """One variant on one machine.

    ``longest_context`` is the most tokens per sequence that run as well, 0 where nothing does.
    ``vram_for_whole`` and ``ram_alone`` are what one GPU, or RAM without a GPU, would have to
    offer. ``disk_to_build`` holds the checkpoint and the file together, ``disk_to_run`` the file.
    """

    variant: Variant
    placement: Placement
    longest_context: int
    vram_for_whole: int
    ram_alone: int
    disk_to_build: int
    disk_to_run: int
    command: str
    advice: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Other:
    """A format that transformers loads. All figures are modelled, but the weights of some.

    ``weight_bytes`` is None where the format cannot hold the model; ``note`` then says why.
    """

    name: str
    weight_bytes: int | None
    parts: tuple[Part, ...]
    fits: bool
    spare: int
    note: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Every variant on one machine, largest first, and the name of the one to take."""

    subject: Subject
    machine: Machine
    settings: Settings
    curve: Curve
    rows: tuple[Row, ...]
    others: tuple[Other, ...]
    recommended: str | None
    reason: str
    warnings: tuple[str, ...]


def answer(subject: Subject, curve: Curve, machine: Machine) -> Answer:
    """Place every variant of a model on a machine and choose one."""
    rows = [_row(variant, subject, curve, machine) for variant in subject.variants]
    advised = tuple(
        row if row.placement.mode == "gpu" else replace(row, advice=_advice(row, rows, curve))
        for row in rows
    )
    best = _recommend(advised)
    return Answer(
        subject=subject,
        machine=machine,
        settings=curve.settings,
        curve=curve,
        rows=advised,
        others=_others(subject, curve, machine),
        recommended=best.variant.name if best else None,
        reason=_reason(best, advised, curve.settings),
        warnings=tuple(_warnings(subject, curve.settings, machine, best)),
    )


def needs_at(variant: Variant, curve: Curve, cells: int) -> Needs:
    """What a variant needs at a context."""
    return needs(weigh(variant, curve.shape, curve.unused), curve, cells)


def gib(n_bytes: int) -> str:
    """Memory for people: ``81.4 GiB``, ``512 MiB`` or ``123 KiB``."""
    if abs(n_bytes) >= GIB:
        return f"{n_bytes / GIB:.1f} GiB"
    if abs(n_bytes) >= MIB:
        return f"{n_bytes / MIB:.0f} MiB"
    return f"{n_bytes / 1024:.0f} KiB"


def describe(placement: Placement) -> str:
    """A placement in a few words: the verdict of one row."""
    match placement.mode:
        case "gpu":
            used = sum(1 for count in placement.layers_per_gpu if count)
            return "fits on the GPU" if used == 1 else f"fits on {used} GPUs"
        case "experts":
            return f"fits, experts of {placement.n_cpu_moe} layers in RAM"
        case "layers":
            return f"fits, {placement.n_gpu_layers} layers on the GPU"
        case "ram":
            return "fits in RAM, on the CPU"
        case "disk":
            return f"only from disk, {gib(placement.short)} short"
        case "none":
            return f"does not fit, {gib(placement.short)} short"


def as_numbers(result: Answer) -> dict[str, Any]:
    """The answer as JSON values, every size in bytes."""
    subject, machine = result.subject, result.machine
    return {
        "model": {
            "title": subject.title,
            "origin": subject.origin,
            "parameters": subject.n_parameters,
            "active_parameters": subject.n_active,
            "trained_context": subject.shape.n_ctx_train,
            "described_by": subject.describer,
            "fetched": subject.n_fetched,
        },
        "machine": {
            "title": machine.title,
            "gpus": [{"name": gpu.name, "usable": gpu.usable} for gpu in machine.gpus],
            "usable_ram": machine.ram,
            "free_disk": machine.disk,
            "unified": machine.unified,
            "source": machine.source,
        },
        "context": result.settings.context,
        "parallel": result.settings.parallel,
        "kv_type": result.settings.kv_type,
        "flash_attention": result.settings.flash_attn,
        "recommended": result.recommended,
        "reason": result.reason,
        "warnings": result.warnings,
        "quants": [_row_numbers(row) for row in result.rows],
        "other_formats": [
            {
                "name": other.name,
                "weight_bytes": other.weight_bytes,
                "memory": _part_numbers(other.parts),
                "fits": other.fits,
                "spare": other.spare,
                "note": other.note,
            }
            for other in result.others
        ],
    }


def _row(variant: Variant, subject: Subject, curve: Curve, machine: Machine) -> Row:
    settings = curve.settings
    weights = weigh(variant, curve.shape, curve.unused)

    def at(cells: int) -> Needs:
        return needs(weights, curve, cells)

    now = at(settings.cells)
    placement = place(now, machine, variant.file_bytes)
    low, high = 0, curve.longest // CELLS
    while placement.mode != "none" and low < high:
        middle = (low + high + 1) // 2
        if place(at(middle * CELLS), machine, variant.file_bytes).rank <= placement.rank:
            low = middle
        else:
            high = middle - 1
    return Row(
        variant=variant,
        placement=placement,
        longest_context=min(low * CELLS, max(subject.shape.n_ctx_train, settings.context)),
        vram_for_whole=vram_for_whole(now),
        ram_alone=ram_alone(now),
        disk_to_build=variant.source_bytes + variant.file_bytes if variant.source_bytes else 0,
        disk_to_run=variant.file_bytes,
        command=_command(variant, placement, curve) if placement.mode != "none" else "",
    )


# What runs a model, by its use. Only the server takes several sequences.
_TOOLS = {
    "text": ("llama-server",),
    "embedding": ("llama-server", "--embedding"),
    "encoder-decoder": ("llama-completion",),
    "diffusion": ("llama-diffusion-cli",),
}


def _command(variant: Variant, placement: Placement, curve: Curve) -> str:
    settings = curve.settings
    words = [*_TOOLS[curve.use], "-m", variant.file_name, "-c", str(settings.context)]
    if settings.parallel > 1:
        words[-1] = str(settings.cells * settings.parallel)
    if curve.whole_texts and settings.cells > UBATCH:
        words += ["-b", str(settings.cells), "-ub", str(settings.cells)]
    if words[0] == "llama-server":
        words += ["-np", str(settings.parallel)]
    words += ["-ngl", str(placement.n_gpu_layers)]
    if placement.n_cpu_moe:
        words += ["--n-cpu-moe", str(placement.n_cpu_moe)]
    if sum(1 for count in placement.layers_per_gpu if count) > 1:
        words += ["--tensor-split", ",".join(map(str, placement.layers_per_gpu))]
    words += ["-fa", "on" if settings.flash_attn else "off"]
    if settings.kv_type != "f16":
        words += ["-ctk", settings.kv_type, "-ctv", settings.kv_type]
    return shlex.join(words)


def _advice(row: Row, rows: Sequence[Row], curve: Curve) -> tuple[str, ...]:
    """What would make a variant fit, or fit better."""
    found = []
    placement = row.placement
    if not placement.fits:
        in_ram = total(placement.parts, "RAM")
        beside = " beside the GPU" if placement.n_gpu_layers else ""
        found.append(f"{ram_to_buy(in_ram) // GIB} GB of RAM{beside}")
    found.append(f"a GPU with {gib(row.vram_for_whole)} free holds it whole")
    smaller = (r for r in _for_any_model(rows) if r.variant.tensor_bytes < row.variant.tensor_bytes)
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


def _recommend(rows: Sequence[Row]) -> Row | None:
    """The best variant that fits.

    Of those with 4 bits and more per weight, one that is whole on GPUs is better than one that
    is not, and then more bits are better; below 4 bits the same, but only where nothing else fits.
    Quants of the usual ladder are preferred to others, 16 bits and more are not recommended
    beside q8_0, which loses practically nothing. Those for models that were trained to their few
    levels are not for a model of which nothing is known.
    """
    usual = {q.name for q in all_quants().values() if _USUAL in q.groups} - {"f16"}
    fitting = [row for row in _for_any_model(rows) if row.placement.fits]
    candidates = [row for row in fitting if row.variant.name in usual] or fitting

    def key(row: Row) -> tuple[bool, int, int]:
        few = row.variant.bits_per_weight < _HALF_BITS
        return few, row.placement.rank, -row.variant.tensor_bytes

    return min(candidates, key=key, default=None)


def _for_any_model(rows: Sequence[Row]) -> Sequence[Row]:
    special = {quant.name for quant in all_quants().values() if quant.trained_only}
    return [row for row in rows if row.variant.name not in special] or rows


def _reason(best: Row | None, rows: Sequence[Row], settings: Settings) -> str:
    context = f"{settings.context:,} tokens of context"
    if settings.parallel > 1:
        context += f" for each of {settings.parallel}"
    if best is not None:
        where = {
            "gpu": "the best that fits whole in VRAM",
            "experts": "the best that fits with its experts partly in RAM and the rest in VRAM",
            "layers": "the best that fits with some layers in RAM",
            "ram": "the best that fits in RAM",
        }[best.placement.mode]
        return f"{where} with {context}, {gib(best.placement.spare)} to spare"
    if not rows:
        return "there is no GGUF; quantkit export makes one of a folder for transformers"
    smallest = _for_any_model(rows)[-1]
    what = f"nothing fits with {context}"
    if smallest.advice:
        return f"{what}; for the smallest, {smallest.variant.name}: {'; or '.join(smallest.advice)}"
    return what


def _others(subject: Subject, curve: Curve, machine: Machine) -> tuple[Other, ...]:
    """Folders for transformers: those that are there, or those that could be built."""
    found = subject.stored
    if not found and subject.model is not None:
        found = transformers.formats_of(subject.model)
    elif not found and subject.unquantized and subject.variants:
        found = transformers.formats_of_pieces(subject.variants[0].pieces)
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
    subject: Subject, settings: Settings, machine: Machine, best: Row | None
) -> list[str]:
    found = []
    if settings.context > subject.shape.n_ctx_train:
        found.append(
            f"A context of {settings.context:,} is above the {subject.shape.n_ctx_train:,} tokens "
            "that the model was trained for; its output will be poor beyond them."
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


def _row_numbers(row: Row) -> dict[str, Any]:
    variant, placement = row.variant, row.placement
    return {
        "quant": variant.name,
        "format": variant.format,
        "tensor_bytes": variant.tensor_bytes,
        "file_bytes": variant.file_bytes,
        "file_bytes_label": "exact" if variant.file_is_exact else "modelled",
        "files": variant.n_files,
        "bits_per_weight": variant.bits_per_weight,
        "needs_imatrix": variant.needs_imatrix,
        "needs_allow_requantize": variant.requantizes,
        "download_to_build": variant.download_bytes,
        "disk_to_build": row.disk_to_build,
        "disk_to_run": row.disk_to_run,
        "mode": placement.mode,
        "fits": placement.fits,
        "verdict": describe(placement),
        "n_gpu_layers": placement.n_gpu_layers,
        "n_cpu_moe": placement.n_cpu_moe,
        "layers_per_gpu": placement.layers_per_gpu,
        "memory": _part_numbers(placement.parts),
        "memory_total": total(placement.parts),
        "spare": placement.spare,
        "short": placement.short,
        "vram_for_whole": row.vram_for_whole,
        "ram_alone": row.ram_alone,
        "longest_context": row.longest_context,
        "command": row.command,
        "advice": row.advice,
    }


def _part_numbers(parts: Sequence[Part]) -> list[dict[str, Any]]:
    return [
        {"part": p.name, "device": p.device, "bytes": p.n_bytes, "label": p.label} for p in parts
    ]
