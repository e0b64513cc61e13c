"""Where a variant's parts go on a machine, and whether they fit. Pure: numbers in, numbers out."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

from quantkit.fitting.hardware import Machine
from quantkit.fitting.memory import GPU_OVERHEAD, HOST_OVERHEAD, MemoryPart, Needs, total

# From best to worst. "gpu": whole on GPUs; "experts": experts of some layers in RAM, the rest on
# GPUs; "layers": some layers in RAM; "ram": no GPU; "disk": weights are read from disk again and
# again; "none": not even that.
Mode = Literal["gpu", "experts", "layers", "ram", "disk", "none"]
MODES: tuple[Mode, ...] = ("gpu", "experts", "layers", "ram", "disk", "none")


# The name of a part: what llama.cpp calls mmproj.
PROJECTOR = "vision/audio projector"


@dataclass(frozen=True, slots=True)
class Placement:
    """How a variant is to be run on a machine.

    ``n_gpu_layers`` counts the output as one layer, as llama.cpp does; ``n_cpu_moe`` is how many
    layers keep their experts in RAM; ``layers_per_gpu`` are the proportions of --tensor-split.
    ``spare`` is what stays free, on GPUs where the model is whole there, else in RAM;
    ``short`` is what is missing for it to run without reading weights from the disk.
    """

    mode: Mode
    n_gpu_layers: int
    n_cpu_moe: int
    layers_per_gpu: tuple[int, ...]
    parts: tuple[MemoryPart, ...]
    spare: int
    short: int

    @property
    def fits(self) -> bool:
        """Whether all weights are in memory."""
        return self.mode not in ("disk", "none")

    @property
    def rank(self) -> int:
        """0 for the best mode."""
        return MODES.index(self.mode)


@dataclass(frozen=True)  # without slots, which cached properties cannot use
class _Trial:
    """One way to divide the layers; most are tried only to learn whether they fit the GPUs.

    ``gpu_weights``, ``gpu_kv`` and ``gpu_states`` are bytes per GPU, ``per_gpu`` what llama.cpp
    counts as layers, the output included.
    """

    needs: Needs
    n_gpu_layers: int
    n_cpu_moe: int
    per_gpu: tuple[int, ...]
    gpu_weights: tuple[int, ...]
    gpu_kv: tuple[int, ...]
    gpu_states: tuple[int, ...]
    host_weights: int
    host_kv: int
    host_states: int
    borrows: bool
    fits_gpus: bool

    @cached_property
    def parts(self) -> tuple[MemoryPart, ...]:
        """What lies where; nothing of it is empty."""
        weights, beside = self.needs.weights, self.needs.beside
        parts = []
        for i, count in enumerate(self.per_gpu):
            if not count:
                continue
            device = f"GPU {i}"
            parts += [
                MemoryPart("weights", device, self.gpu_weights[i], "exact"),
                MemoryPart("KV cache", device, self.gpu_kv[i], beside.kv_label),
                MemoryPart("state", device, self.gpu_states[i], "probed"),
                MemoryPart("compute", device, beside.gpu_compute, beside.gpu_compute_label),
                MemoryPart("overhead", device, GPU_OVERHEAD, "modelled"),
            ]
            if i == 0:
                parts.append(MemoryPart(PROJECTOR, device, beside.projector, "exact"))
            if self.borrows:
                parts.append(MemoryPart("borrowed weights", device, weights.largest, "modelled"))
        parts.append(MemoryPart("weights", "RAM", self.host_weights, "exact"))
        if not any(self.per_gpu[:1]):
            parts.append(MemoryPart(PROJECTOR, "RAM", beside.projector, "exact"))
        parts.append(MemoryPart("KV cache", "RAM", self.host_kv, beside.kv_label))
        parts.append(MemoryPart("state", "RAM", self.host_states, "probed"))
        parts.append(
            MemoryPart("compute", "RAM", self.busy, "probed" if self.borrows else "modelled")
        )
        parts.append(MemoryPart("output", "RAM", beside.output, "probed"))
        parts.append(MemoryPart("overhead", "RAM", HOST_OVERHEAD, "modelled"))
        return tuple(part for part in parts if part.n_bytes)

    @property
    def busy(self) -> int:
        """Bytes of compute buffers in RAM: whatever computes there needs a whole one."""
        beside = self.needs.beside
        return beside.compute if self.borrows else beside.host_inputs

    @property
    def host(self) -> int:
        """Bytes that RAM must hold."""
        beside = self.needs.beside
        projector = 0 if any(self.per_gpu[:1]) else beside.projector
        held = self.host_weights + self.host_kv + self.host_states + projector
        return held + self.busy + beside.output + HOST_OVERHEAD


def place(needs: Needs, machine: Machine, file_bytes: int) -> Placement:
    """The best way to run a variant on a machine."""
    n_layers = len(needs.weights.layers)
    everything = n_layers + 1
    has_experts = any(needs.weights.experts)
    whole = _divide(needs, machine, everything, 0)
    alone = _divide(needs, machine, 0, 0)
    if machine.gpus and whole.fits_gpus:
        on_gpus = total(whole.parts) - whole.host
        in_ram = whole.host + (on_gpus if machine.unified else 0)
        if in_ram <= machine.ram:
            spare = _gpu_room(whole, machine)
            if machine.unified:
                spare = min(spare, machine.ram - in_ram)
            return _settle("gpu", whole, spare)
    if machine.gpus and not machine.unified:
        trial = None
        if has_experts:
            # The fewest experts in RAM whose absence lets the rest onto the GPUs.
            trial = _fewest(n_layers, lambda n: _divide(needs, machine, everything, n))
            if trial is not None and trial.host <= machine.ram:
                return _settle("experts", trial, machine.ram - trial.host)
        # The fewest layers in RAM.
        layered = _fewest(everything, lambda n: _divide(needs, machine, everything - n, 0))
        if layered is not None and layered.n_gpu_layers and layered.host <= machine.ram:
            return _settle("layers", layered, machine.ram - layered.host)
        if alone.host <= machine.ram:
            return _settle("ram", alone, machine.ram - alone.host)
        candidates = [t for t in (trial, layered, alone) if t is not None]
        return _from_disk(min(candidates, key=lambda t: t.host), machine, file_bytes)
    if alone.host <= machine.ram:
        return _settle("ram", alone, machine.ram - alone.host)
    return _from_disk(alone, machine, file_bytes)


def vram_for_whole(needs: Needs) -> int:
    """Bytes of one GPU that holds everything but the embedding."""
    weights, beside = needs.weights, needs.beside
    held = weights.total - weights.embedding + weights.tied_output
    remembered = beside.kv_before[-1] + beside.states_before[-1]
    return held + remembered + beside.gpu_compute + beside.projector + GPU_OVERHEAD


def ram_alone(needs: Needs) -> int:
    """Bytes of RAM that a run without a GPU takes."""
    beside = needs.beside
    remembered = beside.kv_before[-1] + beside.states_before[-1]
    busy = beside.compute + beside.output + beside.projector + HOST_OVERHEAD
    return needs.weights.total + remembered + busy


def _divide(needs: Needs, machine: Machine, n_gpu_layers: int, n_cpu_moe: int) -> _Trial:
    """Give the last ``n_gpu_layers`` layers to the GPUs, one GPU after the other, as they fit."""
    weights, beside = needs.weights, needs.beside
    n_layers = len(weights.layers)
    before, experts_before = weights.layers_before, weights.experts_before
    first = n_layers + 1 - n_gpu_layers
    on_host = min(first, n_layers)
    host_weights = weights.embedding + before[on_host] + experts_before[max(on_host, n_cpu_moe)]
    if not n_gpu_layers:
        host_weights += weights.output
    borrows = on_host > 0 or n_cpu_moe > 0
    base = GPU_OVERHEAD + beside.gpu_compute + (weights.largest if borrows else 0)

    def held(start: int, end: int) -> int:
        experts = experts_before[max(end, n_cpu_moe)] - experts_before[max(start, n_cpu_moe)]
        return before[end] - before[start] + experts

    def taken(start: int, end: int) -> int:
        kv = beside.kv_before[end] - beside.kv_before[start]
        return held(start, end) + kv + beside.states_before[end] - beside.states_before[start]

    counts, gpu_weights, gpu_kv, gpu_states = [], [], [], []
    start = first
    for number, gpu in enumerate(machine.gpus):
        ends = range(start + 1, n_layers + 2)
        room = gpu.usable - base - (beside.projector if number == 0 else 0)
        end = start + bisect_right(ends, room, key=partial(taken, start))
        counts.append(end - start)
        gpu_weights.append(held(start, end))
        gpu_kv.append(beside.kv_before[end] - beside.kv_before[start])
        gpu_states.append(beside.states_before[end] - beside.states_before[start])
        start = end
    return _Trial(
        needs=needs,
        n_gpu_layers=n_gpu_layers,
        n_cpu_moe=n_cpu_moe,
        per_gpu=tuple(counts),
        gpu_weights=tuple(gpu_weights),
        gpu_kv=tuple(gpu_kv),
        gpu_states=tuple(gpu_states),
        host_weights=host_weights,
        host_kv=beside.kv_before[on_host],
        host_states=beside.states_before[on_host],
        borrows=borrows,
        fits_gpus=start == n_layers + 1,
    )


def _fewest(most: int, attempt: Callable[[int], _Trial]) -> _Trial | None:
    """The attempt with the smallest number up to ``most`` that the GPUs can hold, if any."""
    if not attempt(most).fits_gpus:
        return None
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if attempt(middle).fits_gpus:
            high = middle
        else:
            low = middle + 1
    return attempt(low)


def _gpu_room(trial: _Trial, machine: Machine) -> int:
    used = total(trial.parts) - trial.host
    return sum(g.usable for g, n in zip(machine.gpus, trial.per_gpu, strict=True) if n) - used


def _settle(mode: Mode, trial: _Trial, spare: int, short: int = 0) -> Placement:
    return Placement(
        mode, trial.n_gpu_layers, trial.n_cpu_moe, trial.per_gpu, trial.parts, spare, short
    )


def _from_disk(trial: _Trial, machine: Machine, file_bytes: int) -> Placement:
    """Weights that RAM cannot hold are mapped and read as they are needed; the rest must fit."""
    short = trial.host - machine.ram
    weights = next((p.n_bytes for p in trial.parts if (p.name, p.device) == ("weights", "RAM")), 0)
    on_disk = machine.disk is None or file_bytes <= machine.disk
    mode: Mode = "disk" if on_disk and trial.host - weights <= machine.ram else "none"
    return _settle(mode, trial, 0, short)
