"""Processes of this machine that work on runs."""

from __future__ import annotations

import os
from pathlib import Path


def is_alive(pid: int) -> bool:
    """Tells whether a process of chatspace with this id runs here; not a later one of the id.

    One that submitit started for it counts, too.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    if not Path("/proc/self").exists():
        return True
    try:
        command = (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False
    return start_time(pid) is not None and (b"chatspace" in command or b"submitit" in command)


def pid_namespace() -> str | None:
    """Returns where process ids have their meaning: a container may have ids of its own."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115  # no path, a name
    except OSError:
        return None


def start_time(pid: int) -> int | None:
    """Returns when a process started, in clock ticks since boot, None if there is none.

    A child that has ended stays in the process table until its parent asks for it: that is none.

    Source: field 22 of /proc/pid/stat, https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if stat[0] == "Z" else int(stat[19])
