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
    process = Path("/proc") / str(pid)
    try:
        # A child that has ended stays in the process table until its parent asks for it.
        state = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        command = (process / "cmdline").read_bytes()
        return state != "Z" and (b"chatspace" in command or b"submitit" in command)
    except OSError:
        return not Path("/proc/self").exists()
