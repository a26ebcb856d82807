"""One run under one fault: submitted, struck, repaired by commands alone, verified, compared."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from fault_kinds.arena import Arena
from fault_kinds.outcome import Difference, Rows, compare, read_rows

MAX_REPAIRS = 6
IDLE_TIMEOUT_S = 150.0
# Between these shares of the undisturbed run's seconds a fault strikes.
EARLIEST, LATEST = 0.05, 0.85

Inject = Callable[[Arena, random.Random], int]
Around = Callable[[Arena, random.Random], AbstractContextManager[None]]


def _nothing(_: Arena, __: random.Random) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: what `--only` takes.
        what: what is done, for the table.
        inject: strikes once, and returns how often it hit; 0 if there was nothing to hit.
        times: strikes a round.
        around: what surrounds the whole round.
        at_rest: strikes when no job runs any more, instead of at random moments.
    """

    name: str
    what: str
    inject: Inject
    times: int = 3
    around: Around = _nothing
    at_rest: bool = False


@dataclass(slots=True, kw_only=True)
class Round:
    """How a run went.

    Attributes:
        hits: times that the fault hit something.
        elapsed_s: seconds from submission to a complete and verified run.
        repairs: times that the user had to submit again.
        problem: why the run could not be completed, empty if it was.
    """

    hits: int = 0
    elapsed_s: float = 0.0
    repairs: int = 0
    problem: str = ""
    difference: Difference | None = None
    told: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the run is complete and equal to the undisturbed one."""
        return not self.problem and self.difference is not None and self.difference.none


def undisturbed(arena: Arena) -> tuple[Rows, float]:
    """Returns the rows of a run that nothing strikes, and its seconds."""
    arena.reset()
    started = time.monotonic()
    played = Round()
    _submit(arena)
    _complete(arena, played)
    if played.problem or played.repairs:
        raise RuntimeError(f"the undisturbed run failed: {played.problem} {played.told}")
    return read_rows(arena), time.monotonic() - started


def play(arena: Arena, fault: Fault, rng: random.Random, reference: tuple[Rows, float]) -> Round:
    """Plays one round.

    Args:
        arena: cluster and run.
        fault: what strikes.
        rng: decides when and what is struck.
        reference: what `undisturbed` returned.
    """
    rows, usual_s = reference
    played = Round()
    arena.reset()
    with fault.around(arena, rng):
        started = time.monotonic()
        _submit(arena)
        if fault.at_rest:
            if not arena.wait_idle(IDLE_TIMEOUT_S + usual_s):
                played.told.append(f"still queued: {arena.queue()}")
            played.hits = fault.inject(arena, rng)
        else:
            moments = sorted(rng.uniform(EARLIEST, LATEST) for _ in range(fault.times))
            for moment in moments:
                time.sleep(max(0.0, started + moment * usual_s - time.monotonic()))
                played.hits += _strike(arena, fault, rng)
        _complete(arena, played, usual_s)
        played.elapsed_s = time.monotonic() - started
        if not played.problem:
            played.difference = compare(read_rows(arena), rows)
    return played


def _strike(arena: Arena, fault: Fault, rng: random.Random) -> int:
    """Tries until something is hit or the run is over."""
    while True:
        hits = fault.inject(arena, rng)
        if hits or not arena.queue():
            return hits
        time.sleep(0.3)


def _submit(arena: Arena) -> None:
    done = arena.chatspace("submit", str(arena.run))
    if done.returncode != 0:
        raise RuntimeError(f"chatspace submit: {done.stderr}")


def _complete(arena: Arena, played: Round, usual_s: float = 120.0) -> None:
    """Does what a user does until every row is there and verified."""
    for _ in range(MAX_REPAIRS):
        if not arena.wait_idle(IDLE_TIMEOUT_S + usual_s):
            played.told.append(f"stuck: {arena.queue()}")
            arena.heal()
            arena.chatspace("cancel", str(arena.run))
            arena.wait_idle(60)
        found = arena.chatspace("gather", str(arena.run))
        verify = found.returncode == 0
        if verify:
            found = arena.chatspace("verify", str(arena.run))
            if found.returncode == 0:
                return
        played.told.append(found.stderr.strip())
        repaired = arena.call(*resubmit(arena, 4), *(["--verify"] if verify else []))
        played.repairs += 1
        if repaired.returncode != 0:
            played.told.append(f"resubmit: {repaired.stderr.strip()}")
            break
    played.problem = played.told[-1]


def resubmit(arena: Arena, max_tasks: int) -> list[str]:
    """Returns the command that submits what is missing."""
    words = ["resubmit", str(arena.run), "--max-tasks", str(max_tasks)]
    return [sys.executable, "-m", "chatspace", *words]
