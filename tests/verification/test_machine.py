import os
from pathlib import Path

import pytest

from quantkit.verification.machine import cpu_name, instruction_sets, memory, usable_cores

MEMINFO = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n"
GIB = 2**30


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


def test_this_machine() -> None:
    assert cpu_name()
    assert instruction_sets()
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    found = memory()
    assert found is not None
    assert 0 < found.available <= found.total


def test_without_control_groups(tmp_path: Path) -> None:
    found = memory(machine(tmp_path, {}))
    assert found is not None
    assert (found.total, found.available) == (16_000_000 * 1024, 8_000_000 * 1024)
    assert not found.limited


def test_a_machine_that_does_not_tell(tmp_path: Path) -> None:
    assert memory(tmp_path) is None
    assert usable_cores(tmp_path) >= 1


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(
            {
                "proc/self/cgroup": "0::/pods/one",
                "sys/fs/cgroup/pods/memory.max": str(4 * GIB),
                "sys/fs/cgroup/pods/memory.current": str(3 * GIB),
                "sys/fs/cgroup/pods/memory.stat": f"anon 5\ninactive_file {GIB}",
                "sys/fs/cgroup/pods/one/memory.max": "max",
                "sys/fs/cgroup/pods/one/memory.current": "5",
                "sys/fs/cgroup/pods/one/cpu.max": "100000 100000",
            },
            id="version 2, the parent limits memory",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/path/of/the/host",
                "sys/fs/cgroup/memory.max": str(4 * GIB),
                "sys/fs/cgroup/memory.current": str(3 * GIB),
                "sys/fs/cgroup/memory.stat": f"inactive_file {GIB}",
                "sys/fs/cgroup/cpu.max": "100000 100000",
            },
            id="version 2, in a container",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/box\n1:name=systemd:/\n0::/",
                "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(4 * GIB),
                "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(3 * GIB),
                "sys/fs/cgroup/memory/box/memory.stat": f"inactive_file {GIB}",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "7",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            id="version 1",
        ),
    ],
)
def test_control_group_limits(tmp_path: Path, files: dict[str, str]) -> None:
    root = machine(tmp_path, files)
    found = memory(root)
    assert found is not None
    assert (found.total, found.available) == (4 * GIB, 2 * GIB)
    assert found.limited
    assert usable_cores(root) == 1


def test_half_a_core_is_still_one_thread(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}
    assert usable_cores(machine(tmp_path, files)) == 1
