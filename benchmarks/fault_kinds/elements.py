"""Array elements and their processes, as SLURM and /proc show them."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fault_kinds.arena import Arena


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One array element; `name` is what scontrol calls it (`12_3`)."""

    name: str
    state: str
    node: str


def elements(arena: Arena, state: str) -> list[Element]:
    """Returns the array elements in a state of SLURM; the gather job is none."""
    answer = arena.call("squeue", "-h", "-r", "-t", state, "-o", "%F|%K|%T|%N")
    rows = [line.split("|") for line in answer.stdout.split()]
    return [
        Element(name=f"{job}_{index}", state=at, node=node)
        for job, index, at, node in rows
        if index.isdigit()
    ]


def attempts_by_state(arena: Arena) -> Counter[str]:
    """Returns how many executions ended in each state, those that were requeued too."""
    answer = arena.call("sacct", "-D", "-X", "-n", "-P", "-S", "now-1hour", "-o", "State")
    return Counter(line.split()[0] for line in answer.stdout.splitlines() if line)


def workers(arena: Arena) -> list[int]:
    """Returns the Python processes of array tasks."""
    return _of_jobs(arena, lambda words: b"chatspace" in words and b"task" in words)


def batch_scripts(arena: Arena) -> list[int]:
    """Returns the shells that run the batch scripts of array elements."""

    def is_script(words: list[bytes]) -> bool:
        return len(words) > 1 and words[1].endswith(b"/slurm_script")

    return _of_jobs(arena, is_script)


def step_daemons(arena: Arena, node: str) -> list[int]:
    """Returns the slurmstepd processes of a node."""
    # It overwrites its environment, but its command line and its folder tell whose it is.
    wanted = str(arena.folder / "cluster")
    found = []
    for pid in _pids():
        with suppress(OSError):
            comm = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
            if comm == "slurmstepd" and str(Path(f"/proc/{pid}/cwd").readlink()).startswith(wanted):
                found.append(pid)
    return [pid for pid in found if _node_of(pid) == node]


def _node_of(stepd: int) -> str | None:
    """Returns the node of a step daemon, which its children's environment names."""
    for pid in _pids():
        with suppress(OSError):
            if int(_stat(pid)[1]) == stepd:
                return environment(pid).get("SLURMD_NODENAME")
    return None


def daemon(arena: Arena, name: str) -> int | None:
    """Returns the pid of a daemon of the cluster."""
    try:
        text = (arena.folder / "cluster" / "run" / f"{name}.pid").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    pid = int(text.split()[0])
    try:
        return None if _stat(pid)[0] == "Z" else pid
    except FileNotFoundError:
        return None


def send(pid: int, number: signal.Signals) -> bool:
    """Sends a signal; returns whether the process was alive to get it."""
    try:
        if (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            == "Z"
        ):
            return False
        os.kill(pid, number)
    except (ProcessLookupError, FileNotFoundError):
        return False
    return True


def environment(pid: int) -> dict[str, str]:
    """Returns the environment that a process was started with."""
    data = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return dict(line.split("=", 1) for line in data.split("\0") if "=" in line)


def _of_jobs(arena: Arena, wanted: Callable[[list[bytes]], bool]) -> list[int]:
    found = []
    for pid in _pids():
        with suppress(OSError):
            if not wanted(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")):
                continue
            env = environment(pid)
            ours = env.get("SLURM_CONF") == arena.env["SLURM_CONF"]
            if ours and "SLURM_ARRAY_TASK_ID" in env:
                found.append(pid)
    return sorted(found)


def _stat(pid: int) -> list[str]:
    """Returns state, parent and so on, as they follow the name in /proc/PID/stat."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return text.rpartition(")")[2].split()


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
