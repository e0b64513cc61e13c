"""Roughly how fast a model generates: for each token, memory is read once.

Source: every weight that a token uses goes through the processor once per token, which at one
sequence takes longer than computing with it (the "roofline" of generation). docs/fit.md says how
much of the bandwidth llama.cpp was seen to reach.
"""

from quantkit.fitting.hardware import Machine
from quantkit.fitting.memory import Weights
from quantkit.fitting.placement import Placement

# Of the bandwidth on the data sheet, what llama.cpp reaches; seen were 45 to 75 % (docs/fit.md).
REACHED = 0.6


def tokens_per_second(
    weights: Weights, placement: Placement, machine: Machine, active: float
) -> float | None:
    """An estimate for one sequence with little in its cache; None where it would be a guess.

    Args:
        weights: of the variant, by where they can lie.
        placement: where they do.
        machine: which of its memories can be read how fast.
        active: the share of the experts that a token uses.

    """
    if not placement.fits:
        return None
    read = read_per_token(weights, placement, active)
    speeds = {f"GPU {i}": gpu.bandwidth for i, gpu in enumerate(machine.gpus)}
    speeds["RAM"] = machine.ram_bandwidth
    if machine.unified and machine.gpus:
        speeds["RAM"] = machine.gpus[0].bandwidth
    seconds = 0.0
    for device, n_bytes in read.items():
        speed = speeds[device]
        if n_bytes and speed is None:
            return None
        seconds += n_bytes / (speed or 1.0)
    return REACHED / seconds if seconds else None


def read_per_token(weights: Weights, placement: Placement, active: float) -> dict[str, float]:
    """Bytes of weights that are read for a token, by device; of the embedding it is a row."""
    n_layers = len(weights.layers)
    devices = ["RAM"] * (n_layers + 1 - placement.n_gpu_layers)
    for number, count in enumerate(placement.layers_per_gpu):
        devices += [f"GPU {number}"] * count
    read = dict.fromkeys(devices, 0.0) | {"RAM": 0.0}
    for layer in range(n_layers):
        read[devices[layer]] += weights.layers[layer]
        in_ram = layer < placement.n_cpu_moe
        read["RAM" if in_ram else devices[layer]] += active * weights.experts[layer]
    read[devices[n_layers]] += weights.output + weights.tied_output
    return read
