"""What SLURM, its administrator or another user does to the elements of an array."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from fault_kinds.arena import Arena
from fault_kinds.elements import Element, attempts_by_state, elements
from fault_kinds.round import Fault

# SLURM looks at time limits every 30 s: what ends before its next look gets no warning worth the
# name, what ends after it is told to stop in time.
WALLTIME_CHECK_S = 35.0
WITHOUT_WARNING_S, WITH_WARNING_S = (1, 12), (33, 40)


def _walltime(arena: Arena, rng: random.Random) -> int:
    """Leaves running elements a few seconds, until SLURM's next look finds some of them running."""
    told: set[str] = set()

    def leave_seconds() -> None:
        for element in elements(arena, "RUNNING"):
            if element.name not in told:
                told.add(element.name)
                left_s = rng.randint(*rng.choice([WITHOUT_WARNING_S, WITH_WARNING_S]))
                end = f"EndTime=now+{left_s}"
                arena.call("scontrol", "update", f"jobid={element.name}", end)

    return _became(arena, ("TIMEOUT", "REQUEUED"), WALLTIME_CHECK_S, meanwhile=leave_seconds)


def _preempt(arena: Arena, rng: random.Random) -> int:
    """A job of a partition with more priority takes whole nodes for a second."""
    if not elements(arena, "RUNNING"):
        return 0
    n_nodes = rng.randint(1, 4)
    words = ("-p", "cpu", "-A", "proj1", "-t", "1", "-N", str(n_nodes), "--exclusive")
    before = attempts_by_state(arena)["PREEMPTED"]
    arena.call("sbatch", *words, "-o", "/dev/null", "--wrap", "sleep 1")
    return _became(arena, ("PREEMPTED",), 10.0, before=before)


def _requeue(arena: Arena, rng: random.Random) -> int:
    element = _one(arena, "RUNNING", rng)
    return int(element is not None and _accepted(arena, "scontrol", "requeue", element.name))


def _cancel_running(arena: Arena, rng: random.Random) -> int:
    return _cancel(arena, "RUNNING", rng)


def _cancel_pending(arena: Arena, rng: random.Random) -> int:
    return _cancel(arena, "PENDING", rng)


def _cancel(arena: Arena, state: str, rng: random.Random) -> int:
    element = _one(arena, state, rng)
    if element is None or not _accepted(arena, "scancel", f"--state={state}", element.name):
        return 0
    return int(_until(lambda: element not in elements(arena, state), 5.0))


def _node_down(arena: Arena, rng: random.Random) -> int:
    """An administrator takes a node down and gives it back some seconds later."""
    element = _one(arena, "RUNNING", rng)
    if element is None:
        return 0
    node = f"nodename={element.node}"
    before = attempts_by_state(arena)["NODE_FAIL"]
    if not _accepted(arena, "scontrol", "update", node, "state=down", "reason=fault"):
        return 0
    hits = _became(arena, ("NODE_FAIL",), 6.0, before=before)
    time.sleep(rng.uniform(0, 4))
    arena.heal()
    return hits


def _one(arena: Arena, state: str, rng: random.Random) -> Element | None:
    found = elements(arena, state)
    return rng.choice(found) if found else None


def _accepted(arena: Arena, *command: str) -> bool:
    return arena.call(*command).returncode == 0


def _became(
    arena: Arena,
    states: tuple[str, ...],
    timeout_s: float,
    before: int | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> int:
    """Returns how many more executions ended in these states, as soon as one has."""

    def count() -> int:
        found = attempts_by_state(arena)
        return sum(found[state] for state in states)

    def has_more() -> bool:
        meanwhile()
        return count() > begun

    begun = count() if before is None else before
    _until(has_more, timeout_s)
    time.sleep(1.0)  # accounting hears of the others
    return count() - begun


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True


FAULTS = (
    Fault(name="walltime", what="EndTime of running elements in 1 to 12 s, or in 33 to 40 s",
          inject=_walltime, times=2),
    Fault(name="preemption", what="job of a higher PriorityTier takes 1 to 4 nodes",
          inject=_preempt),
    Fault(name="requeue", what="scontrol requeue of a running element", inject=_requeue),
    Fault(name="node-down", what="node set down, and resumed up to 4 s later", inject=_node_down),
    Fault(name="scancel-running", what="scancel of a running element", inject=_cancel_running),
    Fault(name="scancel-pending", what="scancel of a pending element", inject=_cancel_pending),
)  # fmt: skip
