"""Waiting for a run: never longer than asked for, and SLURM's silence is not taken for an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from chatspace.errors import IncompleteError
from chatspace.jobs.scheduler import COMMAND_TIMEOUT_S, Scheduler, SlurmScheduler
from chatspace.jobs.submissions import is_active_here, read_submissions
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.watch.completeness import is_complete
from chatspace.watch.status import RunStatus, ask, run_status, see, status_of

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# Where somebody looks on: a machine of one's own is asked more often than SLURM.
SHOWN_PAUSE_S, SHOWN_SLURM_PAUSE_S = 2.0, 10.0
SETTLE_S = 2.0
LEAST_ANSWER_S = 1.0
GLANCE_S = 5.0


def wait_until_complete(
    plan: Plan,
    *,
    timeout_min: float,
    scheduler: Scheduler | None = None,
    show: Callable[[RunStatus], None] | None = None,
) -> None:
    """Returns when every split is gathered and all its shards are there.

    Args:
        plan: the run.
        timeout_min: how long at most.
        scheduler: asked for the states of jobs [SLURM].
        show: told how far the run is, now and then and at the end.

    Raises:
        TimeoutError: it is not complete by then; it goes on running.
        IncompleteError: nothing that was submitted is queued or running any more.
    """
    started = time.monotonic()
    deadline = started + timeout_min * 60
    pause_s, next_look = FIRST_PAUSE_S, started if show else started + FIRST_PAUSE_S
    while not is_complete(plan):
        now = time.monotonic()
        if now >= next_look or now >= deadline:
            status = _look(plan, scheduler, deadline - now)
            if show is not None:
                show(status)
            longest_s = _longest_pause(status, is_shown=show is not None)
            if _is_over(plan, status):
                break
            next_look = time.monotonic() + min(2 * pause_s, longest_s)
            pause_s = min(1.5 * pause_s, longest_s)
        if now >= deadline:
            raise TimeoutError(f"{plan.run_id} is {status.state} after {timeout_min:g} minutes")
        time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
    if show is not None:
        show(glance(plan))


def glance(plan: Plan) -> RunStatus:
    """Returns how far a run is, without waiting long; SLURM is not asked of a complete one."""
    seen = see(plan)
    return status_of(
        seen, None if seen.is_complete else ask([seen], SlurmScheduler(timeout_s=GLANCE_S))
    )


def _look(plan: Plan, scheduler: Scheduler | None, left_s: float) -> RunStatus:
    timeout_s = min(COMMAND_TIMEOUT_S, max(LEAST_ANSWER_S, left_s))
    return run_status(plan, scheduler=scheduler or SlurmScheduler(timeout_s=timeout_s))


def _longest_pause(status: RunStatus, *, is_shown: bool) -> float:
    if not is_shown:
        return LONGEST_PAUSE_S
    return SHOWN_PAUSE_S if status.slurm == "not asked" else SHOWN_SLURM_PAUSE_S


def _is_over(plan: Plan, status: RunStatus) -> bool:
    """Tells whether a run that had looked incomplete has ended complete after all.

    Raises:
        IncompleteError: it was submitted, and nothing of it is left to wait for.
    """
    submissions = read_submissions(plan)
    may_go_on = status.is_active or status.slurm == "silent"
    if not submissions or may_go_on or any(is_active_here(job) for job in submissions):
        return False
    time.sleep(SETTLE_S)  # the last task's files may take a moment to be seen
    if is_complete(plan):
        return True
    why = "; ".join(f"{label}: {error}" for label, error in list(status.failures.items())[:1])
    states = ", ".join(f"{n} {state}" for state, n in sorted(status.jobs.items()))
    folder = Layout(Path(plan.workspace)).run(plan.run_id).folder
    raise IncompleteError(
        f"Nothing is running any more: {plan.run_id} is {status.state}"
        f"{f' ({states})' if states else ''}{f'; {why}' if why else ''}. See `run.logs()`, "
        f"{plan.cluster['log_dir']} and {folder}; then `run.resubmit()`, or submit it again."
    )
