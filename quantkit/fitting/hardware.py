"""Memory that a model may use: of a profile, of sizes on the command line, of this machine.

Nominal sizes are powers of two, as memory is built: "24GB" of VRAM and "32GB" of RAM are GiB.
"""

import difflib
import importlib
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.core.errors import QuantkitError
from quantkit.core.profiles import load_profile, profile_names
from quantkit.core.units import SizeError, parse_size, shown, split_size
from quantkit.fitting.memory import GIB
from quantkit.verification.machine import memory

# Of a machine's RAM, what its system and other programs keep: a sixteenth, at least 1 GiB.
# An assumption (docs/fit.md); this machine's own figure is what is available now.
_SYSTEM_SHARE, _SYSTEM_LEAST = 16, GIB
# Sizes in which GPUs and RAM are sold, in GiB.
_RAM_SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_MARKETING = re.compile(r"([kmgt])b?$", re.IGNORECASE)
# What memory of a machine is at least and at most; anything else is a slip of the pen.
_LEAST_MEMORY, _MOST_MEMORY, _MOST_OF_A_GPU = 256 * 2**20, 256 * 2**40, 2**40
_MOST_BARE = 8192  # a larger number without a unit may be MB


class HardwareError(QuantkitError):
    """A hardware profile that does not exist, or a GPU of which nothing is known."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its name, and the bytes that a program can have.

    ``bandwidth`` is how many bytes a second it reads, by its data sheet; None where that is not
    known.
    """

    name: str
    usable: int
    bandwidth: float | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory of a machine in bytes.

    ``ram`` is what programs can have. ``disk`` is None where it is not known. On a ``unified``
    machine the one GPU's memory is part of the RAM. ``source`` says where the figures come from.
    ``ram_bandwidth`` is in bytes a second, None where it is not known.
    """

    title: str
    gpus: tuple[Gpu, ...]
    ram: int
    disk: int | None
    unified: bool
    source: str
    ram_bandwidth: float | None = None

    @property
    def vram(self) -> int:
        """Bytes of all GPUs."""
        return sum(gpu.usable for gpu in self.gpus)


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """Which machine is meant; without any of these, the one that this runs on.

    ``gpus`` are given by their memory (``24GB``) or their names (``rtx-4090``), ``ram`` by its
    size; RAM alone is a machine without a GPU. ``hardware`` is the name of a profile, in which the
    other two replace what they are about.
    """

    gpus: tuple[str, ...] = ()
    ram: str | None = None
    hardware: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is the machine that this runs on."""
        return not (self.gpus or self.ram or self.hardware)

    @property
    def words(self) -> str | None:
        """The machine as ``--for`` takes it; None where it takes none of these."""
        if self.hardware is not None:
            return None if self.gpus or self.ram else self.hardware
        return None if self.ram is None else " + ".join([*(self.gpus or ("0",)), self.ram])

    def find(self) -> Machine:
        """The machine.

        Raises:
            SizeError: a size is none.
            HardwareError: a GPU or a profile is not known by that name.

        """
        if self.is_here:
            return this_machine()
        if self.hardware is None:
            return machine_from_sizes(self.gpus, self.ram, _without_gpus(Path()))
        known = machine_from_profile(self.hardware)
        if not (self.gpus or self.ram):
            return known
        changed = machine_from_sizes(self.gpus, self.ram, known)
        return changed if self.gpus else replace(changed, gpus=known.gpus, unified=known.unified)


def parse_memory(text: str, most: int = _MOST_MEMORY) -> int:
    """Bytes of a memory size: ``24``, ``24GB``, ``24G`` and ``24GiB`` are all 24 * 2**30.

    A number without a unit that is far too large for GB can only count bytes.

    Raises:
        SizeError: the text is not a size, or none that a machine's memory can have.

    """
    number, unit = split_size(text)
    if unit:
        size = parse_size(_MARKETING.sub(r"\1iB", text.strip()))
    elif _MOST_BARE < number < _LEAST_MEMORY:
        raise SizeError(f"{shown(text)} has no unit; write it like 24GB or 24576MB.")
    else:
        size = parse_size(f"{text.strip()}{'GiB' if number <= _MOST_BARE else 'B'}")
    if not _LEAST_MEMORY <= size <= most:
        raise SizeError(
            f"{shown(text)} is not a memory size that a machine has; write it like 24GB."
        )
    return size


def usable_ram(n_bytes: int) -> int:
    """What programs can have of so much RAM, next to the system and other programs."""
    return n_bytes - max(n_bytes // _SYSTEM_SHARE, _SYSTEM_LEAST)


def ram_to_buy(needed: int) -> int:
    """The smallest usual amount of RAM of which so many bytes are usable."""
    sizes = (size * GIB for size in _RAM_SIZES)
    return next((size for size in sizes if usable_ram(size) >= needed), 2 * needed)


def machine_from_sizes(gpus: Sequence[str], ram: str | None, base: Machine) -> Machine:
    """``base`` with other GPUs, other RAM, or both.

    A GPU is given by its memory, or as a profile of ``profiles/hardware``. A box described by sizes
    alone has no known disk. Where only RAM is given it has no GPU.

    Raises:
        SizeError: a text is not a size.
        HardwareError: a GPU is neither a size nor known by that name.

    """
    named = tuple(gpu for text in gpus for gpu in _gpus_called(text))
    usable = base.ram if ram is None else max(0, usable_ram(parse_memory(ram)))
    words = [
        *(gpu.name for gpu in named),
        f"{_with_unit(ram)} RAM" if ram else "this machine's RAM",
    ]
    return Machine(
        title=" + ".join(words),
        gpus=named,
        ram=usable,
        disk=base.disk if ram is None else None,
        unified=False,
        source="sizes on the command line; of the RAM a sixteenth, at least 1 GiB, is left to "
        "the system",
        ram_bandwidth=base.ram_bandwidth,
    )


def _gpus_called(text: str) -> tuple[Gpu, ...]:
    profile = _find_profile(text)
    if profile is None and not any(letter.isalpha() for letter in text[:1]):
        if called := [name for name in hardware_profiles() if name.endswith(f"-{text.strip()}")]:
            raise HardwareError(f"--gpu {shown(text)} is not a size; did you mean {called[-1]}?")
        return (Gpu(f"{_with_unit(text)} GPU", parse_memory(text, _MOST_OF_A_GPU)),)
    if profile is None:
        near = difflib.get_close_matches(_plain(text), map(_plain, hardware_profiles()), n=1)
        hint = next((name for name in hardware_profiles() if [_plain(name)] == near), None)
        asked = f"did you mean {hint}?" if hint else "quantkit fit --hardware lists those known."
        raise HardwareError(
            f"--gpu {shown(text)} is neither a size such as 24GB nor known; {asked}"
        )
    machine = machine_from_profile(profile)
    if machine.unified or not machine.gpus:
        raise HardwareError(
            f"{profile} is not a GPU but a whole machine; use --hardware {profile}."
        )
    return machine.gpus


def _with_unit(text: str) -> str:
    text = text.strip()
    is_bytes = len(text) > len(str(_MOST_BARE)) + 2
    return text if text[-1:].isalpha() or is_bytes else f"{text}GB"


def _plain(name: str) -> str:
    """A name without what people write differently: case, spaces, hyphens, the maker's name."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return letters.removeprefix("nvidia").removeprefix("geforce")


def _find_profile(name: str) -> str | None:
    return next((known for known in hardware_profiles() if _plain(known) == _plain(name)), None)


def hardware_profiles() -> tuple[str, ...]:
    """The names of the profiles in ``profiles/hardware``."""
    return profile_names("hardware")


def machine_from_profile(name: str) -> Machine:
    """The machine that ``profiles/hardware/NAME.toml`` describes, whatever the name's case.

    Raises:
        HardwareError: there is no such profile.

    """
    found = _find_profile(name)
    if found is None:
        raise HardwareError(
            f"There is no hardware profile {shown(name)}; there are "
            f"{', '.join(hardware_profiles())}."
        )
    name = found
    profile = load_profile(f"hardware/{name}.toml")
    gpus = tuple(
        Gpu(gpu["name"], gpu["usable_mib"] * 2**20, _per_second(gpu.get("bandwidth_gbs")))
        for gpu in profile.get("gpu", ())
        for _ in range(gpu.get("count", 1))
    )
    return Machine(
        title=profile["title"],
        gpus=gpus,
        ram=profile["usable_ram_mib"] * 2**20,
        disk=None,
        unified=profile.get("unified", False),
        source=profile["source"],
        ram_bandwidth=_per_second(profile.get("ram_bandwidth_gbs")),
    )


def _per_second(gigabytes: float | None) -> float | None:
    return None if gigabytes is None else gigabytes * 1e9


def this_machine(folder: Path = Path()) -> Machine:
    """The machine this runs on: free memory of its GPUs, available RAM, free disk in a folder."""
    machine = _without_gpus(folder)
    if apple_ram := _apple_ram():
        gpu = Gpu("Apple GPU", apple_working_set(apple_ram))
        return replace(machine, gpus=(gpu,), unified=True)
    return replace(machine, gpus=nvidia_gpus())


def _without_gpus(folder: Path) -> Machine:
    """The machine that this runs on, but for its GPUs, whose driver takes a moment to answer."""
    found = memory()
    return Machine(
        title="this machine",
        gpus=(),
        ram=found.available if found else usable_ram(_apple_ram() or 8 * GIB),
        disk=shutil.disk_usage(folder).free,
        unified=False,
        source="detected: memory that is free now, control group limits included",
    )


def apple_working_set(ram: int) -> int:
    """What macOS lets a GPU use of unified memory unless told otherwise.

    Metal's recommendedMaxWorkingSetSize, as llama.cpp logs it: two thirds up to 36 GB (10,923 MB
    of 16 GiB, 21,845 MB of 32 GiB), three quarters above (73,728 MB of 96 GiB).
    """
    return ram * 2 // 3 if ram <= 36 * GIB else ram * 3 // 4


def nvidia_gpus() -> tuple[Gpu, ...]:
    """NVIDIA's GPUs with their free memory, through NVML, else nvidia-smi; none where neither."""
    try:
        return _through_nvml()
    except (ImportError, OSError, RuntimeError):
        return _through_nvidia_smi()


def _through_nvml() -> tuple[Gpu, ...]:
    pynvml: Any = importlib.import_module("pynvml")  # it ships no types
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise RuntimeError(str(error)) from None
    try:
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            free = int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
            gpus.append(Gpu(str(pynvml.nvmlDeviceGetName(handle)), free))
        return tuple(gpus)
    except pynvml.NVMLError as error:
        raise RuntimeError(str(error)) from None
    finally:
        pynvml.nvmlShutdown()


def _through_nvidia_smi() -> tuple[Gpu, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:  # so no process is made that would look for it in vain
        return ()
    command = [program, "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return read_nvidia_smi(output.stdout)


def read_nvidia_smi(output: str) -> tuple[Gpu, ...]:
    """GPUs from lines of ``name, mebibytes``; lines that say something else are left out."""
    rows = (line.rpartition(",") for line in output.splitlines())
    return tuple(
        Gpu(name.strip(), int(free) * 2**20)
        for name, _, free in rows
        if name and free.strip().isdigit()
    )


def _apple_ram() -> int | None:
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return None
    try:
        output = subprocess.run(
            ["sysctl", "-n", "hw.memsize"], capture_output=True, text=True, timeout=10, check=True
        )
        return int(output.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
