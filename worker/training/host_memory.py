"""How much main memory this process can still take, also inside a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Bytes of main memory that this process can still take.

    This is what the machine has available, or what the memory limits of the process's control groups leave,
    whichever is less. File pages that the kernel can drop count as available.

    Args:
        proc: where procfs is mounted.
        cgroups: where the control groups are mounted, version 1 or 2.
    """
    return max(0, min([_machine(proc), *_control_groups(proc, cgroups)]))


def _machine(proc: Path) -> int:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _control_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each control group leaves that contains the process and limits memory, in bytes."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            # With version 1 beside it, version 2 is mounted below.
            for mounted in (cgroups, cgroups / "unified"):
                yield from _limits(mounted, path, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            yield from _limits(
                cgroups / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
            )


def _limits(mounted: Path, path: str, limit: str, usage: str, prefix: str) -> Iterator[int]:
    group = mounted / path.lstrip("/")
    # A container often sees its own group as the root, whatever path procfs names; so every folder up to the
    # root is tried.
    for folder in (group, *group.parents):
        if folder.is_relative_to(mounted):
            try:
                # Without a limit, version 2 says `max`; version 1 says a number above any memory.
                most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
                yield most - used + _file_pages(folder / "memory.stat", prefix)
            except (OSError, ValueError):
                continue


def _file_pages(statistics: Path, prefix: str) -> int:
    counted = dict(line.split(" ", 1) for line in statistics.read_text().splitlines())
    return sum(int(counted.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
