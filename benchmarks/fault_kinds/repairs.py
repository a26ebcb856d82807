"""Two people, or one person twice, repair a run at the same time."""

from __future__ import annotations

import random
import subprocess

from fault_kinds.arena import COMMAND_TIMEOUT_S, Arena
from fault_kinds.elements import elements
from fault_kinds.round import Fault, resubmit


def _repair_twice(arena: Arena, rng: random.Random) -> int:
    """Cancels some elements, running and pending, and submits what is missing twice at once.

    The rest of the array may still run, and a repair may ask for a share of what that has.
    """
    found = elements(arena, "RUNNING,PENDING")
    if not found:
        return 0
    for element in rng.sample(found, k=min(len(found), rng.randint(2, 8))):
        arena.call("scancel", element.name)
    if rng.random() < 0.5:
        arena.wait_idle(120)
    started = [
        subprocess.Popen(
            [*resubmit(arena, max_tasks), *rng.choice([[], ["--share"]])],
            cwd=arena.folder,
            env={**arena.env, **arena.submit_env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for max_tasks in (4, rng.randint(2, 6))
    ]
    return int(any(process.wait(COMMAND_TIMEOUT_S) == 0 for process in started))


FAULTS = (
    Fault(name="two-repairs", what="elements cancelled, then two repairs at the same moment",
          inject=_repair_twice, times=1),
)  # fmt: skip
