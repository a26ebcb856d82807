"""How much memory a process may still take."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
# Limit, use, and what of the use are pages of files, which go when memory is needed.
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_bytes(proc: Path = PROC, mount: Path = CGROUPS) -> int | None:
    """Returns what is free on the machine, or in a cgroup of this process if that is less.

    SLURM and containers limit their tasks by cgroups, of version 2 or 1. None where the system
    does not say, as outside Linux.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max, memory.current)
    """
    free = [_field(proc / "meminfo", "MemAvailable:", unit=1024)]
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            free += _free_of(mount, path, _VERSION_2)
        elif "memory" in controllers.split(","):
            free += _free_of(mount / "memory", path, _VERSION_1)
    known = [n_bytes for n_bytes in free if n_bytes is not None]
    return min(known, default=None)


def _free_of(root: Path, path: str, names: tuple[str, str, str]) -> list[int | None]:
    """Returns what is free in a cgroup and in those around it; a limit of any of them counts."""
    limit_name, use_name, pages_name = names
    # Inside a container the cgroup's own path is not there, and the root is the cgroup.
    folder = root / path.lstrip("/")
    found: list[int | None] = []
    for group in (folder, *folder.parents):
        if not group.is_relative_to(root):
            break
        limit, use = _number(group / limit_name), _number(group / use_name)
        if limit is not None and use is not None:
            pages = _field(group / "memory.stat", pages_name) or 0
            found.append(max(0, limit - max(0, use - pages)))
    return found


def _number(path: Path) -> int | None:
    words = " ".join(_lines(path)).split()
    return int(words[0]) if len(words) == 1 and words[0].isdigit() else None  # `max`: no limit


def _field(path: Path, name: str, *, unit: int = 1) -> int | None:
    for line in _lines(path):
        words = line.split()
        if words and words[0] == name:
            return unit * int(words[1])
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
