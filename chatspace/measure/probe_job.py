"""Where a probe runs: in a process of this machine, or in a short job of SLURM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chatspace.atomic import atomic_write_text, output_error
from chatspace.errors import ChatspaceError, ExitCode, UnfitEnvironmentError
from chatspace.jobs.attempt import usable_threads
from chatspace.jobs.render import render_probe
from chatspace.jobs.scheduler import ACTIVE_STATES, Scheduler
from chatspace.layout import Layout, RunLayout
from chatspace.measure.forecast import Probe
from chatspace.measure.probe import read_probe
from chatspace.plan.model import Plan
from chatspace.plan.store import save_plan
from chatspace.spec.slurm import walltime_min

# For what is not the embedding: the container, imports, loading a model from a cold file system.
EXTRA_MIN = 10
LOOK_S = 1.0
ASK_S = 10.0
# A file that was written on a node can take this long to be seen here.
LATE_FILE_S = 20.0


class ProbeFailed(ChatspaceError):
    """The process of a probe ended with an error, which it has told itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeJob:
    """A probe in SLURM's queue.

    Attributes:
        log: where its output goes.
        is_new: whether this call submitted it; False for one that an earlier call left waiting.
    """

    job_id: str
    log: Path
    is_new: bool


def probe_locally(plan: Plan, *, seconds: float) -> Probe:
    """Runs a probe in a process of this machine and returns what it measured.

    Raises:
        ProbeFailed: the process failed; the exit code is its own.
        OutputError: the run's folder cannot be written.
    """
    run = _run_of(plan)
    path = _save_plan(plan, run)
    words = ["probe", "--plan", str(path), "--minutes", f"{seconds / 60:g}"]
    env = {**os.environ, **plan.cluster["env"]}
    env.setdefault("CHATSPACE_THREADS", str(usable_threads()))
    process = subprocess.Popen(
        [sys.executable, "-m", "chatspace", *words],
        env=env,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C comes to this process alone
    )
    try:
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait(timeout=30)
        shutil.rmtree(run.probe_folder / "shards", ignore_errors=True)
        raise
    found = read_probe(run.probe)
    if code or found is None:
        failure = ProbeFailed(f"Probe failed: {plan.run_id} exit code {code}; see the line above.")
        if code in list(ExitCode):
            failure.exit_code = ExitCode(code)
        raise failure
    return found


def submit_probe(plan: Plan, scheduler: Scheduler, *, seconds: float) -> ProbeJob:
    """Submits a probe as a job with the run's own directives, unless one is in the queue already.

    Raises:
        UnfitEnvironmentError: the batch system is missing or refuses.
        OutputError: the run's folder or that of the logs cannot be written.
    """
    run = _run_of(plan)
    record = run.probe_folder / "job.json"
    waiting = _read_job(record)
    if waiting and scheduler.states([waiting.job_id]).get(waiting.job_id) in ACTIVE_STATES:
        return waiting
    limit_min = walltime_min(plan.cluster["time"])
    time_min = min(EXTRA_MIN + -(-int(seconds) // 60), limit_min or sys.maxsize)
    path = run.probe_folder / "plan.json"
    text = render_probe(plan, path, seconds=seconds, time_min=time_min)
    scheduler.check(text)
    _save_plan(plan, run)
    logs = Path(plan.cluster["log_dir"])
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(error, logs) from error
    script = run.probe_folder / "probe.slurm"
    atomic_write_text(script, text)
    script.chmod(0o755)
    job_id = scheduler.submit(script)
    log = logs / f"{plan.run_id}-probe-{job_id}.out"
    atomic_write_text(record, json.dumps({"job_id": job_id, "log": str(log)}) + "\n")
    return ProbeJob(job_id=job_id, log=log, is_new=True)


def wait_for_probe(
    plan: Plan,
    job: ProbeJob,
    scheduler: Scheduler,
    *,
    wait_min: float,
    say: Callable[[str], None],
) -> Probe:
    """Returns what a job measured.

    Args:
        plan: the run.
        job: the job.
        scheduler: asked every few seconds how the job is.
        wait_min: the longest wait, minutes.
        say: told when the job's state changes.

    Raises:
        UnfitEnvironmentError: the job has ended without a result.
        TimeoutError: it has not ended; it stays in the queue.
    """
    path = _run_of(plan).probe
    begun_s = asked_s = time.monotonic()
    state, ended_s = "PENDING", None
    while True:
        found = read_probe(path)
        if found is not None and found.attempt.split(".r")[0] == job.job_id:
            return found
        now_s = time.monotonic()
        if ended_s is not None and now_s - ended_s > LATE_FILE_S:
            raise UnfitEnvironmentError(
                f"Probe failed: job {job.job_id} {state}; {_last_line(job.log)} Log: {job.log}"
            )
        if now_s - begun_s > 60 * wait_min:
            raise TimeoutError(f"job {job.job_id} is {state} after {wait_min:g} minutes")
        if now_s - asked_s > ASK_S:
            asked_s, before = now_s, state
            state = scheduler.states([job.job_id]).get(job.job_id, state)
            if state != before:
                say(f"job {job.job_id}: {state}")
            if state not in ACTIVE_STATES:
                ended_s = ended_s or now_s
        time.sleep(LOOK_S)


def _run_of(plan: Plan) -> RunLayout:
    return Layout(Path(plan.workspace)).run(plan.run_id)


def _save_plan(plan: Plan, run: RunLayout) -> Path:
    path = run.probe_folder / "plan.json"
    save_plan(plan, path)
    return path


def _read_job(path: Path) -> ProbeJob | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return ProbeJob(job_id=str(content["job_id"]), log=Path(content["log"]), is_new=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it wrote nothing."
