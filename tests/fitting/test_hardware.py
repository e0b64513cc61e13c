import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from quantkit.core.profiles import load_profile, profiles_folder
from quantkit.core.units import SizeError
from quantkit.fitting.hardware import (
    Gpu,
    HardwareError,
    Machine,
    MachineOptions,
    apple_working_set,
    hardware_profiles,
    machine_from_profile,
    machine_from_sizes,
    nvidia_gpus,
    parse_memory,
    ram_to_buy,
    read_nvidia_smi,
    this_machine,
    usable_ram,
)
from quantkit.fitting.memory import GIB, MIB
from quantkit.recipes.machine import parse_machine
from quantkit.verification.machine import memory

HERE = Machine("here", (Gpu("own", 5 * GIB),), 7 * GIB, 100 * GIB, False, "")


@pytest.mark.parametrize("text", ["24", " 24 ", "24.0", "24GB", "24gb", "24G", "24GiB", " 24 GB "])
def test_memory_is_sold_in_powers_of_two(text: str) -> None:
    assert parse_memory(text) == 24 * GIB


def test_other_units() -> None:
    assert parse_memory("1.5TB") == 1536 * GIB
    assert parse_memory("512MB") == 512 * MIB


@pytest.mark.parametrize(
    "text",
    [
        "24XB",
        "-5GB",
        "0GB",
        "",
        "GB",
        "lots",
        "24576",  # megabytes?
        "24KB",
        "24MB",
        "300TB",
        "9" * 400,
    ],
)
def test_nonsense_is_no_size(text: str) -> None:
    with pytest.raises(SizeError):
        parse_memory(text)


def test_a_box_described_by_sizes() -> None:
    box = machine_from_sizes(["24GB", "12GB"], "32GB", HERE)
    assert [gpu.usable for gpu in box.gpus] == [24 * GIB, 12 * GIB]
    assert (box.ram, box.vram, box.disk) == (30 * GIB, 36 * GIB, None)
    assert machine_from_sizes([], "32GB", HERE).gpus == ()
    only_gpu = machine_from_sizes(["24GB"], None, HERE)
    assert (only_gpu.ram, only_gpu.disk) == (HERE.ram, HERE.disk)


@pytest.mark.parametrize(
    ("options", "words", "gpus"),
    [
        (MachineOptions(("24GB", "rtx-3090"), "32GB"), "24GB + rtx-3090 + 32GB", 2),
        (MachineOptions(ram="32GB"), "0 + 32GB", 0),
        (MachineOptions(hardware="2x-rtx-3090"), "2x-rtx-3090", 2),
        (MachineOptions(hardware="2x-rtx-3090", ram="32GB"), None, 2),
        (MachineOptions(("12GB",), hardware="2x-rtx-3090"), None, 1),
        (MachineOptions(("12GB",)), None, 1),
    ],
)
def test_a_machine_is_found_and_named_as_for_takes_it(
    options: MachineOptions, words: str | None, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is not asked for GPUs that are told."""
    monkeypatch.setattr("quantkit.fitting.hardware.nvidia_gpus", pytest.fail)
    found = options.find()
    assert (options.is_here, options.words, len(found.gpus)) == (False, words, gpus)
    if words is not None:
        named = parse_machine(words)
        assert (named.gpus, named.ram, named.unified) == (found.gpus, found.ram, found.unified)


def test_the_system_keeps_its_share() -> None:
    assert usable_ram(64 * GIB) == 60 * GIB
    assert usable_ram(8 * GIB) == 7 * GIB
    assert ram_to_buy(60 * GIB) == 64 * GIB
    assert ram_to_buy(60 * GIB + 1) == 96 * GIB
    assert ram_to_buy(10_000 * GIB) == 20_000 * GIB


def test_this_machine_is_what_the_system_says(tmp_path: Path) -> None:
    found, available = this_machine(tmp_path), memory()
    assert available is not None
    assert abs(found.ram - available.available) < 2 * GIB
    assert found.disk is not None
    assert found.disk > 0


def test_nvidia_smi_is_asked_where_nvml_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, 23512'\necho 'Odd, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvidia_gpus() == (Gpu("NVIDIA GeForce RTX 4090", 23512 * MIB),)
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert nvidia_gpus() == ()
    tool.unlink()
    assert nvidia_gpus() == ()


def test_nvml_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for NVIDIA's library, which only their machines have."""
    closed = []
    nvml = types.SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: closed.append(True),
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: f"GPU {handle}",
        nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(free=(handle + 1) * GIB),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert nvidia_gpus() == (Gpu("GPU 0", GIB), Gpu("GPU 1", 2 * GIB))
    assert closed == [True]


def test_lines_of_nvidia_smi() -> None:
    assert read_nvidia_smi("A, B, 12\nnothing\nC, n/a\n") == (Gpu("A, B", 12 * MIB),)


@pytest.mark.parametrize(("gib", "mebibytes"), [(16, 10_922), (32, 21_845), (96, 73_728)])
def test_apple_gpus_as_llama_cpp_logs_them(gib: int, mebibytes: int) -> None:
    assert apple_working_set(gib * GIB) // MIB == mebibytes


@pytest.mark.parametrize("name", hardware_profiles())
def test_every_profile_is_sound(name: str) -> None:
    machine = machine_from_profile(name)
    profile = load_profile(f"hardware/{name}.toml")
    assert machine.title
    assert len(machine.source) > 20
    assert machine.ram > 6 * GIB
    assert all(gpu.usable > 6 * GIB for gpu in machine.gpus)
    known = {"title", "source", "usable_ram_mib", "ram_bandwidth_gbs", "unified", "gpu"}
    assert set(profile) <= known
    assert all(gpu.bandwidth and 5e10 < gpu.bandwidth < 1e13 for gpu in machine.gpus)
    if machine.unified:
        assert machine.vram < machine.ram


def test_kinds_of_profiles() -> None:
    machines = [machine_from_profile(name) for name in hardware_profiles()]
    assert {len(m.gpus) for m in machines} == {0, 1, 2}
    assert any(m.unified for m in machines)
    assert all(
        (profiles_folder() / "hardware" / f"{n}.toml").is_file() for n in hardware_profiles()
    )


def test_a_profile_that_does_not_exist() -> None:
    with pytest.raises(
        HardwareError, match=r"no hardware profile 'rtx-9090'; there are .*rtx-4090"
    ):
        machine_from_profile("rtx-9090")


def test_a_disk_too_small_for_the_file_or_for_building_it_is_told() -> None:
    from quantkit.fitting.answer import answer
    from quantkit.fitting.probe import probe
    from quantkit.fitting.settings import ContextSettings
    from quantkit.fitting.subject import PlanOptions, open_subject
    from quantkit.planning.quants import find_quants

    subject = open_subject("mistral-7b", PlanOptions(find_quants(["q4_k_m"])))
    curve = probe(subject, ContextSettings(512))
    for disk, told in ((4 * 10**9, ["hold", "build"]), (10**10, ["build"]), (10**11, [])):
        machine = replace(HERE, gpus=(), ram=64 * GIB, disk=disk)
        warnings = answer(subject, curve, machine).warnings
        assert [warning.split()[1] for warning in warnings] == told
