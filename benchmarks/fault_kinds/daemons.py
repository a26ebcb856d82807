"""SLURM's own daemons, and the clocks of the nodes."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fault_kinds.arena import Arena, ArenaError
from fault_kinds.elements import daemon, elements, send, step_daemons, workers
from fault_kinds.round import Fault

# SlurmdTimeout of the test cluster is 10 s: a node that is silent for longer is taken for dead
# while its tasks go on.
SILENT_S = (1.0, 20.0)
SKEW_S = 7200
FAKETIME = "libfaketime.so.1"


def _kill_slurmd(arena: Arena, rng: random.Random) -> int:
    node = _busy_node(arena, rng)
    pid = daemon(arena, f"slurmd.{node}")
    hit = pid is not None and send(pid, signal.SIGKILL)
    time.sleep(rng.uniform(*SILENT_S) if hit else 0)
    arena.heal()
    return int(hit)


def _kill_stepd(arena: Arena, rng: random.Random) -> int:
    """Kills a node's step daemons and its slurmd: nobody is left who would end the tasks."""
    node = _busy_node(arena, rng)
    stepds = step_daemons(arena, node) if node else []
    if not stepds:
        return 0
    pid = daemon(arena, f"slurmd.{node}")
    if pid is not None:
        send(pid, signal.SIGKILL)
    hits = sum(send(stepd, signal.SIGKILL) for stepd in stepds)
    time.sleep(rng.uniform(0, 5))
    arena.heal()
    return int(hits > 0)


def _restart_controller(arena: Arena, rng: random.Random) -> int:
    """Kills slurmctld or asks it to end; a task may be told to stop while it is away."""
    if not elements(arena, "RUNNING"):
        return 0
    pid = daemon(arena, "slurmctld")
    hit = pid is not None and send(pid, rng.choice([signal.SIGKILL, signal.SIGTERM]))
    running = workers(arena)
    if running and rng.random() < 0.5:
        send(rng.choice(running), signal.SIGTERM)
    while daemon(arena, "slurmctld") is not None:  # it saves its state first
        time.sleep(0.1)
    time.sleep(rng.uniform(0, 8))
    arena.heal()
    return int(hit)


def _busy_node(arena: Arena, rng: random.Random) -> str:
    nodes = sorted({element.node for element in elements(arena, "RUNNING")})
    return rng.choice(nodes) if nodes else ""


@contextmanager
def _skewed(arena: Arena, rng: random.Random) -> Iterator[None]:
    """Gives the Python of tasks on each node a clock that is up to two hours off.

    Through libfaketime, which a file named by BASH_ENV loads into what the batch scripts start;
    SLURM's own commands keep the right time, for munge accepts five minutes at most.
    """
    (library, *_) = [*Path("/usr/lib").glob(f"*/faketime/{FAKETIME}"), None]
    if library is None:
        raise ArenaError("libfaketime is missing. Run: hpc/install-test-system")
    offsets = [-SKEW_S, SKEW_S, rng.randint(-SKEW_S, SKEW_S), 0]
    cases = "".join(
        f"  n{number}) offset={seconds:+d} ;;\n" for number, seconds in enumerate(offsets, start=1)
    )
    script = arena.folder / "skew.sh"
    script.write_text(
        f"case ${{SLURMD_NODENAME:-}} in\n{cases}  *) offset= ;;\nesac\n"
        f"if [[ -n $offset ]]; then\n"
        f"  export LD_PRELOAD={library} FAKETIME=$offset DONT_FAKE_MONOTONIC=1\n"
        f"  export FAKETIME_DONT_FAKE_MONOTONIC=1\n"
        f'  scontrol() {{ env -u LD_PRELOAD scontrol "$@"; }}\n'
        f"fi\n",
        encoding="utf-8",
    )
    arena.submit_env["BASH_ENV"] = str(script)
    try:
        yield
    finally:
        del arena.submit_env["BASH_ENV"]


def _kill_on_a_skewed_node(arena: Arena, rng: random.Random) -> int:
    """Kills a task whose clock is off by more than half an hour, as its event log shows."""
    off = _pids_off(arena) & set(workers(arena))
    return int(bool(off) and send(rng.choice(sorted(off)), signal.SIGKILL))


def _pids_off(arena: Arena) -> set[int]:
    now, off = datetime.now(UTC), set()
    for path in (arena.run / "events").glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if '"started"' in line:
                event = json.loads(line)
                seconds = (datetime.fromisoformat(event["time"]) - now).total_seconds()
                if abs(seconds) > SKEW_S / 4:
                    off.add(event["pid"])
    return off


FAULTS = (
    Fault(name="slurmd-killed", what="SIGKILL of a node's slurmd, back after 1 to 20 s",
          inject=_kill_slurmd, times=2),
    Fault(name="stepd-killed", what="SIGKILL of a node's slurmd and slurmstepd, tasks orphaned",
          inject=_kill_stepd, times=2),
    Fault(name="slurmctld-restarted", what="slurmctld killed or ended, back after 0 to 8 s",
          inject=_restart_controller),
    Fault(name="clock-skew", what="nodes up to 2 h off, a task on them killed",
          inject=_kill_on_a_skewed_node, around=_skewed),
)  # fmt: skip
