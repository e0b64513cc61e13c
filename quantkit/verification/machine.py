"""What this machine offers to this process: instruction sets, cores, memory.

Sources: ``proc(5)``, and the kernel's documents on control groups, versions 1 and 2.
"""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantkit.core.errors import FileError
from quantkit.core.files import read_file

# A flag of /proc/cpuinfo, x86 or Arm, and the name people know it by. Sets that only differ in
# details (the many AVX-512 subsets) are listed where ggml has kernels for them.
_INSTRUCTION_SETS = {
    "sse4_2": "SSE4.2",
    "avx": "AVX",
    "f16c": "F16C",
    "fma": "FMA",
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "asimddp": "dot product",
    "i8mm": "I8MM",
    "sve": "SVE",
    "sme": "SME",
}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of memory: what there is and what can be had now, control group limits included.

    ``limited`` says whether a control group allows less than the machine has.
    """

    total: int
    available: int
    limited: bool


def cpu_name() -> str:
    """The processor's name, or its architecture where the system does not tell."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """The instruction sets that matter to ggml and that the processor shows."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    found = [name for flag, name in _INSTRUCTION_SETS.items() if flag in flags]
    if not found and platform.machine() in ("arm64", "aarch64"):
        return ["NEON"]  # every 64-bit Arm has it; macOS and Windows have no /proc
    return found


def usable_cores(root: Path = Path("/")) -> int:
    """How many cores this process may keep busy: its affinity and its CPU quota, at least 1."""
    cores: float = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    for group in _control_groups(root, "cpu"):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            cores = min(cores, int(quota) / int(period))
    return max(1, int(cores))


def memory(root: Path = Path("/")) -> Memory | None:
    """Memory of the machine and what this process may have of it; None where unknown."""
    fields = dict(_pairs(_read(root / "proc/meminfo")))
    if "MemTotal:" not in fields or "MemAvailable:" not in fields:
        return None
    total, available = fields["MemTotal:"] * 1024, fields["MemAvailable:"] * 1024
    machine_total = total
    for group in _control_groups(root, "memory"):
        limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        used = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
        if not (limit.isdigit() and used.isdigit()):
            continue
        # The page cache counts as used, but the kernel gives it back on demand.
        cache = dict(_pairs(_read(group / "memory.stat"))).get("inactive_file", 0)
        total = min(total, int(limit))
        available = min(available, max(0, int(limit) - int(used) + cache))
    return Memory(total=total, available=available, limited=total < machine_total)


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders whose limits bind this process: its group and all groups above it."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / controllers
        group = base / path.lstrip("/")
        # In a container the path may be the host's; then only the base is there to be read.
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(base))


def _cpuinfo(key: str) -> str | None:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _pairs(text: str) -> Iterator[tuple[str, int]]:
    """(name, number) of every line that starts with both."""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[1].isdigit():
            yield words[0], int(words[1])


def _read(file: Path) -> str:
    try:
        return read_file(file).decode(errors="replace").strip()
    except FileError:
        return ""
