"""How much of the host's memory this process may still use."""

from pathlib import Path

import psutil


def free_memory(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes free in the machine, or up to the limit of a control group, as SLURM and containers set it."""
    free = int(psutil.virtual_memory().available)
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return free
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, used, cache = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        group = base / path.lstrip("/")
        # A limit may be set on any group above; within a container, the own path may not be visible.
        for place in (group, *(p for p in group.parents if p == base or p.is_relative_to(base))):
            free = min(free, _left(place, limit, used, cache))
    return max(free, 0)


def _left(group: Path, limit: str, used: str, cache: str) -> int:
    """Bytes up to the limit of one group; unlimited if it cannot be read."""
    try:
        most = int((group / limit).read_text())
        # Pages of files that were read are given up when they are needed.
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most - int((group / used).read_text()) + int(statistics.get(cache, 0))
    except (OSError, ValueError):
        return 1 << 62
