"""Cancel: every job of a run that is queued or running, here and in SLURM, and what it left."""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Iterator
from contextlib import suppress

from chatspace.errors import InputError
from chatspace.jobs.scheduler import Scheduler
from chatspace.jobs.submissions import active_jobs
from chatspace.kinds import KINDS
from chatspace.plan.model import Plan
from chatspace.watch.completeness import is_complete


def cancel(plan: Plan, scheduler: Scheduler) -> list[str]:
    """Cancels the jobs of a run, also those submitted by hand; what is done stays.

    Returns:
        The ids of what was cancelled.

    Raises:
        UnfitEnvironmentError: the batch system does not answer or refuses.
    """
    active = active_jobs(plan, scheduler)
    if is_complete(plan):  # a process of this machine that is still there is just ending
        active = [job for job in active if job.isdigit()]
    if in_slurm := [job for job in active if job.isdigit()]:
        scheduler.cancel(in_slurm)
    for job in active:
        host, _, pid = job.rpartition(":")
        if host == platform.node():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(pid), signal.SIGTERM)
    return active


def left_batches(plan: Plan) -> list[str]:
    """Returns the batches that a run left with its endpoint, in words; asks nobody."""
    outstanding = KINDS[plan.kind].outstanding()
    return list(map(str, outstanding.left_batches(plan))) if outstanding else []


def cancel_batches(plan: Plan) -> Iterator[str]:
    """Cancels what a run left with its endpoint, and yields each in words; running it resumes it.

    Raises:
        InputError: runs of its kind leave nothing with anybody.
        UnfitEnvironmentError: the endpoint cannot be asked.
    """
    yield from map(str, KINDS[plan.kind].outstanding().cancel_batches(plan))


def refuse_without_batches(plan: Plan) -> None:
    """Refuses a run of a kind that leaves nothing with anybody.

    Raises:
        InputError: it is one.
    """
    if KINDS[plan.kind].outstanding() is None:
        raise InputError(
            f"No batches: --batches; kind={plan.kind} of {plan.run_id} leaves nothing with an "
            "endpoint. Leave --batches out."
        )
