"""Cancel: every job of a run that is queued or running, here and in SLURM."""

from __future__ import annotations

import os
import platform
import signal
from contextlib import suppress

from chatspace.jobs.scheduler import Scheduler
from chatspace.jobs.submissions import active_jobs
from chatspace.plan.model import Plan


def cancel(plan: Plan, scheduler: Scheduler) -> list[str]:
    """Cancels the jobs of a run, also those submitted by hand; what is done stays.

    Returns:
        The ids of what was cancelled.

    Raises:
        UnfitEnvironmentError: the batch system does not answer or refuses.
    """
    active = active_jobs(plan, scheduler)
    scheduler.cancel([job for job in active if job.isdigit()])
    for job in active:
        host, _, pid = job.rpartition(":")
        if host == platform.node():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(pid), signal.SIGTERM)
    return active
