"""One variant on one machine: where its parts go, how it is run, and with how much to spare."""

from dataclasses import dataclass

from quantkit.fitting.commands import run_command
from quantkit.fitting.hardware import Machine
from quantkit.fitting.memory import GIB, MIB, Needs, needs, weigh
from quantkit.fitting.model import SizedModel
from quantkit.fitting.placement import Placement, place, ram_alone, vram_for_whole
from quantkit.fitting.probe import Curve
from quantkit.fitting.quality import Loss
from quantkit.fitting.settings import CELLS
from quantkit.fitting.shape import Shape
from quantkit.fitting.speed import tokens_per_second
from quantkit.fitting.variants import Variant


@dataclass(frozen=True, slots=True)
class Row:
    """One variant on one machine.

    ``longest_context`` is the most tokens per sequence that run as well, 0 where nothing does.
    ``vram_for_whole`` and ``ram_alone`` are what one GPU, or RAM without a GPU, would have to
    offer. ``disk_to_build`` holds the checkpoint and the file together, ``disk_to_run`` the file.
    ``tokens_per_second`` is an estimate, None where the machine's bandwidths are not known;
    ``loss`` is on the scale of the answer, None where that has none. ``beaten_by`` names the quant
    that is no larger and loses less.
    """

    variant: Variant
    placement: Placement
    longest_context: int
    vram_for_whole: int
    ram_alone: int
    disk_to_build: int
    disk_to_run: int
    command: str
    tokens_per_second: float | None = None
    advice: tuple[str, ...] = ()
    loss: Loss | None = None
    beaten_by: str | None = None


def place_variant(variant: Variant, subject: SizedModel, curve: Curve, machine: Machine) -> Row:
    """A variant on a machine: where it goes, how long its context may be, how it is run."""
    settings = curve.settings
    weights = weigh(variant, curve.shape, curve.unused)

    def at(cells: int) -> Needs:
        return needs(weights, curve, cells)

    now = at(settings.cells)
    placement = place(now, machine, variant.file_bytes)

    def runs_as_well(cells: int) -> bool:
        return place(at(cells), machine, variant.file_bytes).rank <= placement.rank

    low = high = 0
    if placement.mode != "none":
        low, high = settings.cells // CELLS, curve.longest // CELLS
        low = high if runs_as_well(high * CELLS) else low
    while low < high:
        middle = (low + high + 1) // 2
        if runs_as_well(middle * CELLS):
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
        command=run_command(variant, placement, curve) if placement.mode != "none" else "",
        tokens_per_second=tokens_per_second(
            weights, placement, machine, _active_share(curve.shape)
        ),
    )


def _active_share(shape: Shape) -> float:
    """Of the experts, those that a token uses."""
    return shape.n_experts_used / shape.n_experts if shape.n_experts else 0.0


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
