"""Processes of a task that are killed or told to stop."""

from __future__ import annotations

import random
import signal

from fault_kinds.arena import Arena
from fault_kinds.elements import batch_scripts, send, workers
from fault_kinds.round import Fault


def _kill_worker(arena: Arena, rng: random.Random) -> int:
    return _send_to_one(workers(arena), signal.SIGKILL, rng)


def _kill_script(arena: Arena, rng: random.Random) -> int:
    return _send_to_one(batch_scripts(arena), signal.SIGKILL, rng)


def _terminate(arena: Arena, rng: random.Random) -> int:
    return _send_to_one(workers(arena), signal.SIGTERM, rng)


def _send_to_one(pids: list[int], number: signal.Signals, rng: random.Random) -> int:
    return int(bool(pids) and send(rng.choice(pids), number))


FAULTS = (
    Fault(name="worker-killed", what="SIGKILL of the Python of a task", inject=_kill_worker),
    Fault(name="script-killed", what="SIGKILL of a batch script", inject=_kill_script),
    Fault(name="worker-terminated", what="SIGTERM to the Python of a task", inject=_terminate),
)
