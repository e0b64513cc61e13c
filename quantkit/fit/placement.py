"""Where a variant's parts go on a machine, and whether they fit. Pure: numbers in, numbers out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from quantkit.fit.hardware import Machine
from quantkit.fit.memory import GPU_OVERHEAD, HOST_OVERHEAD, Needs, Part, total

# From best to worst. "gpu": whole on GPUs; "experts": experts of some layers in RAM, the rest on
# GPUs; "layers": some layers in RAM; "ram": no GPU; "disk": weights are read from disk again and
# again; "none": not even that.
Mode = Literal["gpu", "experts", "layers", "ram", "disk", "none"]
MODES: tuple[Mode, ...] = ("gpu", "experts", "layers", "ram", "disk", "none")


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
    parts: tuple[Part, ...]
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


@dataclass(frozen=True, slots=True)
class _Trial:
    """One way to divide the layers. ``over`` is what GPUs lack, ``host`` what RAM must hold."""

    n_gpu_layers: int
    n_cpu_moe: int
    per_gpu: tuple[int, ...]
    parts: tuple[Part, ...]
    fits_gpus: bool

    @property
    def host(self) -> int:
        return total(self.parts, "RAM")


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
    weights = needs.weights
    held = weights.total - weights.embedding + weights.tied_output
    return held + needs.kv_per_layer * len(weights.layers) + needs.gpu_compute + GPU_OVERHEAD


def ram_alone(needs: Needs) -> int:
    """Bytes of RAM that a run without a GPU takes."""
    kv = needs.kv_per_layer * len(needs.weights.layers)
    return needs.weights.total + kv + needs.compute + needs.output + HOST_OVERHEAD


def _divide(needs: Needs, machine: Machine, n_gpu_layers: int, n_cpu_moe: int) -> _Trial:
    """Give the last ``n_gpu_layers`` layers to the GPUs, one GPU after the other, as they fit."""
    weights = needs.weights
    n_layers = len(weights.layers)
    first = n_layers + 1 - n_gpu_layers
    gpu_weights, counts = [0] * len(machine.gpus), [0] * len(machine.gpus)
    gpu_layers = [0] * len(machine.gpus)
    host_weights = weights.embedding + sum(weights.layers[:first]) + sum(weights.experts[:first])
    if not n_gpu_layers:
        host_weights += weights.output
    on_host = min(first, n_layers)
    borrows = on_host > 0 or n_cpu_moe > 0
    base = GPU_OVERHEAD + needs.gpu_compute + (weights.largest if borrows else 0)
    gpu, fits = 0, True
    for layer in range(first, n_layers + 1):
        if layer == n_layers:
            held, kv = weights.output + weights.tied_output, 0
        else:
            held, kv = weights.layers[layer], needs.kv_per_layer
            if layer < n_cpu_moe:
                host_weights += weights.experts[layer]
            else:
                held += weights.experts[layer]
        while gpu < len(machine.gpus):
            used = base + gpu_weights[gpu] + gpu_layers[gpu] * needs.kv_per_layer
            if used + held + kv <= machine.gpus[gpu].usable:
                break
            gpu += 1
        if gpu == len(machine.gpus):
            fits = False
            break
        gpu_weights[gpu] += held
        gpu_layers[gpu] += layer < n_layers
        counts[gpu] += 1
    parts = []
    for i, count in enumerate(counts):
        if not count:
            continue
        device = f"GPU {i}"
        parts += [
            Part("weights", device, gpu_weights[i], "exact"),
            Part("KV cache", device, gpu_layers[i] * needs.kv_per_layer, needs.kv_label),
            Part("compute", device, needs.gpu_compute, needs.gpu_compute_label),
            Part("overhead", device, GPU_OVERHEAD, "modelled"),
        ]
        if borrows:
            parts.append(Part("borrowed weights", device, weights.largest, "modelled"))
    parts.append(Part("weights", "RAM", host_weights, "exact"))
    parts.append(Part("KV cache", "RAM", on_host * needs.kv_per_layer, needs.kv_label))
    # Whatever computes on the CPU needs a whole compute buffer there.
    busy = needs.compute if borrows else needs.host_inputs
    parts.append(Part("compute", "RAM", busy, "probed" if borrows else "modelled"))
    parts.append(Part("output", "RAM", needs.output, "probed"))
    parts.append(Part("overhead", "RAM", HOST_OVERHEAD, "modelled"))
    kept = tuple(part for part in parts if part.n_bytes)
    return _Trial(n_gpu_layers, n_cpu_moe, tuple(counts), kept, fits)


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
