"""A short job that looks around on a compute node, and waiting for what it says."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from chatspace.checks.container import doctor_folder, last_words
from chatspace.checks.findings import Finding, failed, warned
from chatspace.checks.inside import PING, PONG, is_done, read_findings
from chatspace.errors import UnfitEnvironmentError
from chatspace.jobs.render import render_doctor
from chatspace.jobs.scheduler import ACTIVE_STATES, Scheduler
from chatspace.plan.model import Plan
from chatspace.plan.store import save_plan

LOOK_S = 0.25
ASK_S = 5.0
# What a node wrote last may be seen here only so much later.
SETTLE_S = 10.0


def node_is_fit(plan: Plan, scheduler: Scheduler, timeout_min: float) -> Iterable[Finding]:
    """Submits the test job, waits for it, and returns what it found; nothing of it stays.

    Args:
        plan: the run, whose directives the job has.
        scheduler: takes the job.
        timeout_min: how long it is waited for; after that it is cancelled.
    """
    with doctor_folder(plan) as folder:
        script = folder / "doctor.slurm"
        script.write_text(render_doctor(plan, folder), encoding="utf-8")
        save_plan(plan, folder / "plan.json")
        (folder / "node").write_text("from the login node", encoding="utf-8")
        try:
            job_id = scheduler.submit(script)
        except UnfitEnvironmentError as error:
            return [failed("node", str(error), "See the check `job`.")]
        try:
            text, state = _wait(folder, job_id, scheduler, timeout_min * 60)
        except BaseException:  # Ctrl-C
            scheduler.cancel([job_id])
            raise
        found = [replace(item, check=f"node {item.check}") for item in read_findings(text)]
        if is_done(text):
            return found
        return [*found, _unfinished(text, state, job_id, scheduler, timeout_min)]


def _unfinished(
    text: str, state: str, job_id: str, scheduler: Scheduler, timeout_min: float
) -> Finding:
    if state in ACTIVE_STATES:
        scheduler.cancel([job_id])
        step = "Give it longer with --timeout-min, or look at `squeue --start`."
        seen = f"job {job_id} was {state} after {timeout_min:g} min, and was cancelled"
        return warned("node", seen, step)
    seen = f"job {job_id} ended as {state}: {last_words(text, None)}"
    seen = seen.removesuffix(" (exit code None)")
    return failed("node", seen, "Check the profile; `sacct -j` and `scontrol show job` tell more.")


def _wait(folder: Path, job_id: str, scheduler: Scheduler, timeout_s: float) -> tuple[str, str]:
    """Returns the job's output and its last state, when it has ended or the time is up."""
    log = folder / "job.out"
    deadline, state, next_ask, ended_at = time.monotonic() + timeout_s, "PENDING", 0.0, None
    while True:
        now = time.monotonic()
        _answer(folder)
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        if is_done(text) or now > deadline:
            return text, state
        if now > next_ask:
            state = scheduler.states([job_id]).get(job_id, state)
            next_ask = now + ASK_S
        if state not in ACTIVE_STATES:
            ended_at = ended_at or now
            if now > ended_at + SETTLE_S:
                return text, state
        time.sleep(LOOK_S)


def _answer(folder: Path) -> None:
    """Tells the node the time here, once it has asked."""
    if (folder / PING).exists() and not (folder / PONG).exists():
        (folder / f"{PONG}.tmp").write_text(str(time.time()), encoding="utf-8")
        (folder / f"{PONG}.tmp").rename(folder / PONG)
