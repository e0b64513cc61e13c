"""Placement as arithmetic: nothing is lost, nothing is overfilled, more memory never hurts."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit.fitting.hardware import Gpu, Machine
from quantkit.fitting.memory import (
    GIB,
    GPU_OVERHEAD,
    HOST_OVERHEAD,
    MIB,
    Beside,
    Needs,
    Weights,
    total,
)
from quantkit.fitting.placement import MODES, PROJECTOR, Placement, place, ram_alone, vram_for_whole

FILE = 10 * GIB


def needs(
    layers: int = 8,
    dense: int = 100 * MIB,
    experts: int = 900 * MIB,
    kv: int = 50 * MIB,
    state: int = 0,
) -> Needs:
    weights = Weights(
        embedding=200 * MIB,
        output=300 * MIB,
        tied_output=0,
        layers=(dense,) * layers,
        experts=(experts,) * layers,
        largest=(experts or dense) // 3,
    )
    beside = Beside(
        kv=(kv,) * layers,
        states=(state,) * layers,
        kv_label="exact",
        compute=250 * MIB,
        output=MIB,
        gpu_compute=250 * MIB,
        gpu_compute_label="modelled",
        host_inputs=20 * MIB,
    )
    return Needs(weights, beside)


def machine(*gpus: int, ram: int, disk: int | None = None, unified: bool = False) -> Machine:
    named = tuple(Gpu(f"GPU of {size}", size) for size in gpus)
    return Machine("a machine", named, ram, disk, unified, "")


def on(placement: Placement, device: str) -> int:
    return total(placement.parts, device)


def weights_in(placement: Placement) -> int:
    return sum(part.n_bytes for part in placement.parts if part.name == "weights")


def test_whole_on_the_gpu_to_the_last_byte() -> None:
    enough = vram_for_whole(needs())
    placement = place(needs(), machine(enough, ram=GIB), FILE)
    assert (placement.mode, placement.n_gpu_layers, placement.spare) == ("gpu", 9, 0)
    assert on(placement, "GPU 0") == enough
    assert on(placement, "RAM") == (200 + 20 + 1) * MIB + HOST_OVERHEAD
    assert place(needs(), machine(enough - 1, ram=16 * GIB), FILE).mode == "experts"


def test_the_fewest_experts_go_to_ram() -> None:
    model = needs()
    # Beside the experts: attention, output, KV, compute, overhead, and room to borrow a matrix.
    rest = 8 * (100 + 50) * MIB + (300 + 250 + 300) * MIB + GPU_OVERHEAD
    for kept in range(8):
        gpu = rest + kept * 900 * MIB
        placement = place(model, machine(gpu, ram=16 * GIB), FILE)
        assert (placement.mode, placement.n_cpu_moe) == ("experts", 8 - kept)
        assert placement.n_gpu_layers == 9
        assert on(placement, "GPU 0") == gpu
    assert place(model, machine(rest - 1, ram=16 * GIB), FILE).mode == "layers"


def test_a_dense_model_leaves_whole_layers_in_ram() -> None:
    model = needs(dense=GIB, experts=0)
    base = (250 * MIB) + GPU_OVERHEAD + GIB // 3 + 300 * MIB
    placement = place(model, machine(base + 3 * (GIB + 50 * MIB), ram=16 * GIB), FILE)
    assert (placement.mode, placement.n_gpu_layers, placement.n_cpu_moe) == ("layers", 4, 0)
    kv = {part.device: part.n_bytes for part in placement.parts if part.name == "KV cache"}
    assert kv == {"GPU 0": 150 * MIB, "RAM": 250 * MIB}


def test_without_a_gpu() -> None:
    enough = ram_alone(needs())
    exact = place(needs(), machine(ram=enough), FILE)
    assert (exact.mode, exact.spare, exact.short) == ("ram", 0, 0)
    assert on(exact, "RAM") == enough
    short = place(needs(), machine(ram=enough - 7), FILE)
    assert (short.mode, short.short) == ("disk", 7)


def test_from_disk_only_where_the_file_has_room_and_the_cache_is_in_ram() -> None:
    assert place(needs(), machine(ram=2 * GIB, disk=FILE), FILE).mode == "disk"
    assert place(needs(), machine(ram=2 * GIB, disk=FILE - 1), FILE).mode == "none"
    assert place(needs(), machine(ram=300 * MIB), FILE).mode == "none"


def test_two_gpus_hold_consecutive_layers() -> None:
    one = vram_for_whole(needs())
    placement = place(needs(), machine(one // 2 + GIB, one // 2 + GIB, ram=4 * GIB), FILE)
    assert placement.mode == "gpu"
    assert sum(placement.layers_per_gpu) == placement.n_gpu_layers == 9
    assert min(placement.layers_per_gpu) > 0
    assert {part.device for part in placement.parts} == {"GPU 0", "GPU 1", "RAM"}


def test_a_gpu_too_small_for_anything_is_passed_over() -> None:
    placement = place(needs(), machine(MIB, vram_for_whole(needs()), ram=4 * GIB), FILE)
    assert (placement.mode, placement.layers_per_gpu) == ("gpu", (0, 9))


def test_a_projector_lies_on_the_first_gpu_or_else_in_ram() -> None:
    plain = needs()
    seeing = replace(plain, beside=replace(plain.beside, projector=70 * MIB))
    enough = vram_for_whole(needs()) + 70 * MIB

    def where(placement: Placement) -> list[tuple[str, int]]:
        return [(part.device, part.n_bytes) for part in placement.parts if part.name == PROJECTOR]

    whole = place(seeing, machine(enough, ram=GIB), FILE)
    assert (whole.mode, whole.spare, where(whole)) == ("gpu", 0, [("GPU 0", 70 * MIB)])
    assert on(whole, "GPU 0") == enough == vram_for_whole(seeing)
    assert place(seeing, machine(enough - 1, ram=16 * GIB), FILE).mode == "experts"
    alone = place(seeing, machine(ram=16 * GIB), FILE)
    assert where(alone) == [("RAM", 70 * MIB)]
    assert on(alone, "RAM") == ram_alone(seeing) == ram_alone(needs()) + 70 * MIB
    # On a first GPU that is too small for a layer, there is none of it either.
    second = place(seeing, machine(MIB, 2 * enough, ram=16 * GIB), FILE)
    assert (second.layers_per_gpu, where(second)) == ((0, 9), [("RAM", 70 * MIB)])


def test_unified_memory_is_not_counted_twice() -> None:
    whole = vram_for_whole(needs())
    apple = machine(whole, ram=whole, unified=True)
    assert place(needs(), apple, FILE).mode != "gpu"
    assert place(needs(), replace(apple, ram=whole + GIB), FILE).mode == "gpu"
    # Too much for the GPU's share, and yet in memory: the CPU can run it.
    assert place(needs(), machine(whole - 1, ram=16 * GIB, unified=True), FILE).mode == "ram"


def test_tied_embeddings_are_copied_to_the_gpu() -> None:
    weights = replace(needs().weights, output=MIB, tied_output=200 * MIB)
    tied = replace(needs(), weights=weights)
    placement = place(tied, machine(64 * GIB, ram=GIB), FILE)
    assert weights_in(placement) == weights.total + 200 * MIB
    assert weights_in(place(tied, machine(ram=64 * GIB), FILE)) == weights.total


SIZES = st.integers(0, 14 * GIB)


# time: the check would fail a busy machine
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    gpus=st.lists(SIZES, max_size=3),
    ram=SIZES,
    experts=st.sampled_from([0, 300 * MIB, 900 * MIB]),
    layers=st.integers(1, 20),
    state=st.sampled_from([0, 30 * MIB]),
)
def test_every_placement_is_sound(
    gpus: list[int], ram: int, experts: int, layers: int, state: int
) -> None:
    model = needs(layers=layers, experts=experts, state=state)
    there = machine(*gpus, ram=ram)
    placement = place(model, there, FILE)
    assert weights_in(placement) == model.weights.total
    kv = sum(part.n_bytes for part in placement.parts if part.name == "KV cache")
    assert kv == sum(model.beside.kv)
    states = sum(part.n_bytes for part in placement.parts if part.name == "state")
    assert states == sum(model.beside.states)
    for i, gpu in enumerate(there.gpus):
        assert on(placement, f"GPU {i}") <= gpu.usable
    assert placement.fits == (placement.short == 0)
    if placement.fits:
        assert on(placement, "RAM") <= ram
        assert placement.spare >= 0
    else:
        assert on(placement, "RAM") == ram + placement.short


@pytest.mark.parametrize("experts", [0, 900 * MIB])
@given(gpu=SIZES, ram=SIZES, more_gpu=SIZES, more_ram=SIZES)
def test_more_memory_is_never_worse(
    experts: int, gpu: int, ram: int, more_gpu: int, more_ram: int
) -> None:
    model = needs(experts=experts)
    before = place(model, machine(gpu, ram=ram), FILE)
    after = place(model, machine(gpu + more_gpu, ram=ram + more_ram), FILE)
    assert MODES.index(after.mode) <= MODES.index(before.mode)
    assert after.short <= before.short
