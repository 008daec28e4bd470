"""The memory that a process can take: the machine's, or what its control groups leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.training.host_memory import available_memory

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with 64 GiB available; `proc` and `cgroups` are its mounts."""
    write(tmp_path / "proc/meminfo", f"MemTotal: 99 kB\nMemFree: 9 kB\nMemAvailable: {64 * 2**20} kB\n")
    (tmp_path / "cgroups").mkdir()
    return tmp_path


def write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def version_2(group: Path, limit: str, used: int, *, files: int = 0) -> None:
    write(group / "memory.max", f"{limit}\n")
    write(group / "memory.current", f"{used}\n")
    write(group / "memory.stat", f"anon 5\nactive_file {files // 2}\ninactive_file {files - files // 2}\n")


def version_1(group: Path, limit: int, used: int, *, files: int = 0) -> None:
    write(group / "memory.limit_in_bytes", f"{limit}\n")
    write(group / "memory.usage_in_bytes", f"{used}\n")
    write(
        group / "memory.stat",
        f"active_file 1\ninactive_file 1\ntotal_active_file 0\ntotal_inactive_file {files}\n",
    )


def available(machine: Path, cgroup: str | None = None) -> int:
    if cgroup is not None:
        write(machine / "proc/self/cgroup", cgroup)
    return available_memory(machine / "proc", machine / "cgroups")


def test_without_control_groups_it_is_the_machines(machine: Path) -> None:
    assert available(machine) == 64 * GIB
    assert available(machine, "0::/user.slice\n") == 64 * GIB


def test_this_machine_has_memory() -> None:
    assert 2**20 < available_memory() < 2**50


def test_a_container_sees_its_group_as_the_root(machine: Path) -> None:
    version_2(machine / "cgroups", str(16 * GIB), 3 * GIB, files=GIB)
    assert available(machine, "0::/\n") == 14 * GIB
    assert available(machine, "0::/../kubepods/pod1/c\n") == 14 * GIB


def test_every_group_above_limits_too(machine: Path) -> None:
    version_2(machine / "cgroups/pods/pod1", str(8 * GIB), 2 * GIB)
    version_2(machine / "cgroups/pods/pod1/c", "max", GIB)
    assert available(machine, "0::/pods/pod1/c\n") == 6 * GIB


def test_version_1(machine: Path) -> None:
    version_1(machine / "cgroups/memory", 2**63 - 4096, 9 * GIB)
    version_1(machine / "cgroups/memory/docker/c", 4 * GIB, 3 * GIB, files=GIB)
    lines = "11:cpu,cpuacct:/docker/c\n4:memory:/docker/c\n1:name=systemd:/docker/c\n0::/x\n"
    assert available(machine, lines) == 2 * GIB


def test_version_1_in_a_container_that_sees_its_group_as_the_root(machine: Path) -> None:
    version_1(machine / "cgroups/memory", 4 * GIB, GIB)
    assert available(machine, "4:memory:/kubepods/pod1/c\n") == 3 * GIB


def test_more_than_the_limit_in_use_leaves_nothing(machine: Path) -> None:
    version_2(machine / "cgroups", str(GIB), 2 * GIB)
    assert available(machine, "0::/\n") == 0
